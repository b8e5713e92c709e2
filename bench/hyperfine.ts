// Compares whole commands, start-up of Node included, by hyperfine: `mapram save` against a script that does QEMU's save by QMP.
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { CLI, ROOT } from '../test/support/paths.ts';
import { startSourceGuests } from './guests.ts';
import { runToEnd } from './interruption.ts';
import { parseChannels, parseSize } from './lists.ts';
import { needTools } from './tools.ts';
import { withCleanup } from './with-cleanup.ts';
import { makeWorkload } from './workload.ts';

interface Options {
  channels: number;
  size: number;
  dir: string;
  runs: number;
}

function parseOptions(argv: string[]): Options {
  const program = new Command('tsx bench/hyperfine.ts')
    .description("Compare `mapram save` with a script that does QEMU's save by QMP, as whole commands.")
    .option(
      '--channels <number>',
      'for both',
      strictly((text) => parseChannels(text)[0] ?? 1),
      4,
    )
    .option('--size <bytes>', 'RAM of the guest, such as 512M', strictly(parseSize), 2 * 2 ** 30)
    .option('--dir <directory>', 'where images go', '/var/tmp')
    .option('--runs <number>', 'counted runs of each', strictly(parseRuns), 5);
  return program.allowExcessArguments(false).parse(argv, { from: 'user' }).opts<Options>();
}

function parseRuns(text: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text) || text === '1') throw new Error('hyperfine needs 2 runs or more');
  return Number(text);
}

function strictly(parse: (text: string) => number): (text: string) => number {
  return (text) => {
    try {
      return parse(text);
    } catch (error) {
      throw new InvalidArgumentError((error as Error).message);
    }
  };
}

/** Words of a shell command, quoted. */
function quoted(...words: string[]): string {
  return words
    .map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`))
    .join(' ');
}

/** QEMU's best way of saving, and the fdatasync that it leaves out. */
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
  needTools(['hyperfine'], (text) => process.stderr.write(`bench: ${text}\n`));
  return withCleanup(async (cleanup) => {
    mkdirSync(options.dir, { recursive: true });
    const directory = mkdtempSync(join(options.dir, 'mapram-bench-'));
    cleanup.add(() => rmSync(directory, { recursive: true, force: true }));
    const guests = await startSourceGuests(makeWorkload('dense', options.size), cleanup);
    const sockets = await Promise.all(
      (['ours', 'theirs'] as const).map((side) => guests.withGuest(side, async ({ qemu }) => qemu.socket)),
    );
    const [ours, theirs] = sockets as [string, string];
    const image = join(directory, 'image');
    const reset = quoted('node', join(ROOT, 'bench/qmp.js'), theirs, '{"execute":"system_reset"}');
    const words = [
      ...['--warmup', '1', '--runs', String(options.runs)],
      ...['--prepare', `rm -f ${image}`, '--command-name', `mapram save, ${options.channels} channels`],
      quoted('node', CLI, 'save', '--quiet', '--channels', String(options.channels), '--qmp', ours, image),
      ...[
        '--prepare',
        `rm -f ${image}; ${reset}`,
        '--command-name',
        `QEMU by QMP, ${options.channels} channels, direct-io`,
      ],
      stockCommand(theirs, image, options.channels),
    ];
    // Not spawnSync's own pipes: hyperfine shows its progress and results itself.
    return spawnSync('hyperfine', words, { stdio: 'inherit' }).status ?? 1;
  });
}

await runToEnd(() => main(parseOptions(process.argv.slice(2))));
