import { Command, InvalidArgumentError, Option } from 'commander';
import { MEMORY_KINDS, type MemoryKind } from './guest-memory.ts';
import { parseChannels, parseNames, parseSize } from './lists.ts';
import { COPIES, type Copy, ENGINES } from './mapram.ts';
import { MEMORY_STATES, type MemoryState } from './restore.ts';
import { WORKLOADS, type WorkloadName } from './workload.ts';

/** What is measured. */
export const OPERATIONS = ['save', 'restore'] as const;
export type Operation = (typeof OPERATIONS)[number];

/** Whom mapram is measured against. */
export const RIVALS = ['qemu', 'fio', 'dd'] as const;
export type Rival = (typeof RIVALS)[number];

/** What `--dir` takes besides a directory: a fast disk of the bench's own. */
export const FAST_STANDIN = 'fast-standin';

/** The bench's command line. */
export interface BenchArguments {
  channels: number[];
  /** Bytes of guest RAM; absent: as each workload has it by default. */
  size?: number;
  dir: string;
  workload: WorkloadName[];
  operation: Operation[];
  /** What the pages of shared memory are. */
  memory: MemoryKind[];
  /** Of shared memory that is restored into. */
  state: MemoryState[];
  engine: string[];
  copy: Copy[];
  against: Rival[];
  runs: number;
  results: string;
  json?: true;
  /** True: all of them; otherwise those of groups whose names begin like this. */
  bars?: true | string[];
}

/** Parses the words behind the program's name; prints help and ends the process where that is asked for or a word is not understood. */
export function parseArguments(argv: readonly string[]): BenchArguments {
  const program = new Command('npm run bench --')
    .description("Measure mapram against QEMU's own save and restore, and against the disk.")
    .option(
      '--channels <list>',
      'counts and ranges, which step by powers of two',
      checked(parseChannels),
      parseChannels('1..128'),
    )
    .option('--size <bytes>', 'RAM of the guest, such as 512M (default: 2G; idle: 12G)', checked(parseSize))
    .option('--dir <directory>', `where images go, or ${FAST_STANDIN}: an XFS in memory`, '/var/tmp')
    .option('--workload <names>', `${WORKLOADS.join(', ')}, or all`, names(WORKLOADS), ['dense'])
    .option('--operation <names>', `${OPERATIONS.join(', ')}, or all`, names(OPERATIONS), ['save'])
    .option(
      '--memory <names>',
      'shared memory of small (4 KiB) pages, huge (transparent) ones, hugetlb (2 MiB), or all',
      names(MEMORY_KINDS),
      ['small'],
    )
    .option(
      '--state <names>',
      'restore into shared memory that is warm (its pages are there), fresh, or all',
      names(MEMORY_STATES),
      ['warm'],
    )
    .option('--engine <names>', `auto, ${ENGINES.join(', ')}, or all of these three`, checked(parseEngines), [
      'auto',
    ])
    .option('--copy <names>', `mapram's --copy: ${COPIES.join(', ')}, or all`, names(COPIES), ['auto'])
    .option('--against <names>', `${RIVALS.join(', ')}, or none`, checked(parseRivals), [...RIVALS])
    .option('--runs <number>', 'counted rounds', checked(parseRuns), 3)
    .option('--results <directory>', 'where the report goes', 'bench/results')
    .option('--json', 'print the results as JSON instead of tables')
    .addOption(
      new Option(
        '--bars [groups]',
        'run what the bars of speed need, and say which are met; of the groups whose names begin with one of these only (save-idle,restore), and keep the others as they were',
      )
        .argParser((text) => text.split(','))
        .conflicts(['json', 'workload', 'operation', 'memory', 'state', 'engine', 'copy', 'against']),
    );
  program.allowExcessArguments(false).parse(argv, { from: 'user' });
  const options = program.opts<BenchArguments>();
  if (options.bars && options.dir === FAST_STANDIN)
    program.error(`error: --bars needs a directory on a real disk; it makes the ${FAST_STANDIN} itself`);
  return options;
}

function parseEngines(text: string): string[] {
  return text === 'all' ? [...ENGINES] : parseNames(['auto', ...ENGINES], text);
}

function parseRivals(text: string): Rival[] {
  return text === 'none' ? [] : parseNames(RIVALS, text);
}

function parseRuns(text: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text)) throw new Error(`'${text}' is not a number of rounds`);
  return Number(text);
}

function names<Name extends string>(known: readonly Name[]): (text: string) => Name[] {
  return checked((text) => parseNames(known, text));
}

/** Makes commander name the option along with what is wrong with its value. */
export function checked<T>(parse: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return parse(text);
    } catch (error) {
      throw new InvalidArgumentError((error as Error).message);
    }
  };
}
