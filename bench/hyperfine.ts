// Compares whole commands, start-up of Node included, by hyperfine: `mapram save` against a script that does QEMU's save by QMP.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { CLI, ROOT } from '../test/support/paths.ts';
import { checked, FAST_STANDIN } from './arguments.ts';
import { checkImage } from './check-image.ts';
import { memoryPlace } from './guest-memory.ts';
import { type Side, startSourceGuests } from './guests.ts';
import { interruption, runToEnd } from './interruption.ts';
import { parseChannels, parseSize } from './lists.ts';
import { diskFor, say } from './measure.ts';
import { needTools } from './tools.ts';
import { withCleanup } from './with-cleanup.ts';
import { makeWorkload } from './workload.ts';

interface Options {
  channels: number;
  size: number;
  dir: string;
  runs: number;
  results: string;
}

function parseOptions(argv: string[]): Options {
  const program = new Command('npm run bench:commands --')
    .description("Compare `mapram save` with a script that does QEMU's save by QMP, as whole commands.")
    .option('--channels <number>', 'for both', checked(parseChannelCount), 4)
    .option('--size <bytes>', 'RAM of the guest, such as 512M', checked(parseSize), 2 * 2 ** 30)
    .option('--dir <directory>', `where images go, or ${FAST_STANDIN}: an XFS in memory`, '/var/tmp')
    .option('--runs <number>', 'counted runs of each', checked(parseRuns), 5)
    .option('--results <directory>', 'where hyperfine.json goes', 'bench/results');
  return program.allowExcessArguments(false).parse(argv, { from: 'user' }).opts<Options>();
}

function parseChannelCount(text: string): number {
  const [count, ...more] = parseChannels(text);
  if (count === undefined || more.length > 0) throw new Error('whole commands are compared at one count');
  return count;
}

function parseRuns(text: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text) || text === '1') throw new Error('hyperfine needs 2 runs or more');
  return Number(text);
}

/** Words of a shell command, quoted. */
function quoted(...words: string[]): string {
  return words
    .map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`))
    .join(' ');
}

/** QEMU's own save with direct I/O, and the fdatasync that it leaves out. */
function stockCommand(socket: string, image: string, channels: number): string {
  const commands = [
    {
      execute: 'migrate-set-capabilities',
      arguments: {
        capabilities: ['events', 'mapped-ram', 'multifd'].map((capability) => ({ capability, state: true })),
      },
    },
    {
      execute: 'migrate-set-parameters',
      arguments: { 'max-bandwidth': 0, 'multifd-channels': channels, 'direct-io': true },
    },
    { execute: 'migrate', arguments: { uri: `file:${image}` } },
  ];
  const qmp = quoted(
    'node',
    join(ROOT, 'bench/qmp.js'),
    socket,
    ...commands.map((command) => JSON.stringify(command)),
  );
  return `${qmp} && ${quoted('sync', '--data', image)}`;
}

async function main(options: Options): Promise<number> {
  needTools(['hyperfine'], say);
  return withCleanup(async (cleanup) => {
    mkdirSync(options.results, { recursive: true });
    // Both images lie there at the same time.
    const directory = mkdtempSync(join(diskFor(options.dir, 2 * options.size, cleanup), 'mapram-bench-'));
    cleanup.add(() => rmSync(directory, { recursive: true, force: true }));
    const workload = makeWorkload('dense', options.size);
    const place = memoryPlace('small', options.size, cleanup);
    const guests = await startSourceGuests({ workload, place, directory }, cleanup);
    const of = (side: Side) =>
      guests.withGuest(side, async ({ qemu }) => ({ qemu, image: join(directory, side) }));
    const [ours, theirs] = [await of('ours'), await of('theirs')];
    const { channels } = options;
    const reset = quoted(
      'node',
      join(ROOT, 'bench/qmp.js'),
      theirs.qemu.socket,
      '{"execute":"system_reset"}',
    );
    const status = await hyperfine([
      ...['--warmup', '1', '--runs', String(options.runs)],
      ...['--export-json', join(options.results, 'hyperfine.json')],
      ...['--prepare', quoted('rm', '-f', ours.image), '--command-name', `mapram save, ${channels} channels`],
      quoted(
        ...['node', CLI, 'save', '--quiet', '--channels', String(channels)],
        ...['--qmp', ours.qemu.socket, ours.image],
      ),
      ...['--prepare', `${quoted('rm', '-f', theirs.image)}; ${reset}`],
      ...['--command-name', `QEMU by QMP, ${channels} channels, direct-io`],
      stockCommand(theirs.qemu.socket, theirs.image, channels),
    ]);
    // hyperfine's --prepare removes an image before the next one is made; those of the last runs are left.
    if (status === 0) for (const { qemu, image } of [ours, theirs]) await checkImage(workload, qemu, image);
    return status;
  });
}

/** Runs hyperfine, which shows its progress and results itself, and returns its exit status. */
async function hyperfine(words: string[]): Promise<number> {
  interruption.throwIfAborted();
  const child = spawn('hyperfine', words, { stdio: 'inherit' });
  const kill = () => child.kill('SIGTERM');
  interruption.addEventListener('abort', kill);
  try {
    const [status] = (await once(child, 'close')) as [number | null];
    return status ?? 1;
  } finally {
    interruption.removeEventListener('abort', kill);
  }
}

await runToEnd(() => main(parseOptions(process.argv.slice(2))));
