import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type BenchArguments, FAST_STANDIN } from './arguments.ts';
import { isCeiling } from './disk.ts';
import { describeHost, type Host } from './host.ts';
import { interruption } from './interruption.ts';
import { diskFor, measure, say } from './measure.ts';
import { hostFacts, type Results } from './report.ts';
import type { MemoryState } from './restore.ts';
import { measureScale } from './scale.ts';
import type { SessionPlan } from './session.ts';
import { ratioWithinRounds } from './statistics.ts';
import { DIRECT_STOCK_TYPE } from './stock-save.ts';
import { bestOf, cpuRatio, cpuRatioWithKernel, figures, speedRatio } from './summary.ts';
import { markdownTable, plainTable } from './table.ts';
import { needTools } from './tools.ts';
import { withCleanup } from './with-cleanup.ts';
import type { WorkloadName } from './workload.ts';

/** One line of what mapram has to reach. */
export interface Bar {
  name: string;
  /** The figure must be at least, or at most, this. */
  least?: number;
  most?: number;
  /** Absent where no valid run gave one; the bar is missed then. */
  figure: number | undefined;
}

/** What is known of the bars: kept beside their report, so that what was measured need not be measured again. */
export interface Progress {
  host: Host;
  /** Channel counts, sizes and whatever else the figures depend on. */
  options: Pick<BenchArguments, 'channels' | 'size' | 'dir' | 'runs'>;
  /** By the names of the groups. */
  groups: Record<string, Measured>;
}

/** The bars of a group that was measured, when, and of which commit. */
export interface Measured {
  commit: string;
  began: string;
  bars: Bar[];
}

/**
 * Measures what the bars need, prints them with their figures, and writes them beside the reports. Where only some groups are asked
 * for, the others are as an earlier run left them. Returns the exit status.
 */
export async function measureBars(options: BenchArguments): Promise<number> {
  // What the host is like, versions of tools included, decides which earlier bars count.
  needTools(['fio', 'mkfs.xfs'], say);
  const { channels, size, dir, runs } = options;
  const host = describeHost();
  const wanted: Progress = {
    host,
    options: { channels, dir, runs, ...(size === undefined ? {} : { size }) },
    groups: {},
  };
  const asked = groupsOf(options.bars);
  const groups = earlierGroups(wanted, readEarlier(resultsDirectory(options)), asked, options.resume);
  for (const group of asked) {
    if (groups[group.name] !== undefined) continue;
    const began = new Date().toISOString();
    groups[group.name] = { commit: host.commit, began, bars: await barsOf(group.measureGroup, options) };
    // The whole takes two hours; what is known shall not be lost with the rest.
    mkdirSync(resultsDirectory(options), { recursive: true });
    const path = (file: string) => join(resultsDirectory(options), file);
    writeFileSync(path('bars.md'), barsReport({ ...wanted, groups }));
    writeFileSync(path('bars.json'), `${JSON.stringify({ ...wanted, groups }, undefined, 1)}\n`);
  }
  process.stdout.write(`${plainTable(tableOf(groups))}\n`);
  return GROUPS.every(({ name }) => groups[name]?.bars.every(isMet)) ? 0 : 1;
}

function readEarlier(directory: string): Progress | undefined {
  const path = join(directory, 'bars.json');
  return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as Progress) : undefined;
}

/**
 * The groups that `bars` asks for.
 *
 * @throws {Error} if no group's name begins with one of its words.
 */
export function groupsOf(bars: BenchArguments['bars']): Group[] {
  if (!Array.isArray(bars)) return GROUPS;
  const unknown = bars.find((word) => word === '' || !GROUPS.some(({ name }) => name.startsWith(word)));
  if (unknown !== undefined)
    throw new Error(
      `no bars begin with '${unknown}': there are ${GROUPS.map(({ name }) => name).join(', ')}`,
    );
  return GROUPS.filter(({ name }) => bars.some((word) => name.startsWith(word)));
}

/**
 * The groups of an earlier run that are kept: those that were not asked for, and with `resume` those that were measured of the
 * very code that is measured now.
 *
 * @throws {Error} if groups were to be kept that are of another machine or of other options.
 */
export function earlierGroups(
  wanted: Progress,
  found: Progress | undefined,
  asked: Group[],
  resume: true | undefined,
): Progress['groups'] {
  if (found === undefined || !(resume || asked.length < GROUPS.length)) return {};
  const conditions = ({ host, options }: Progress) => JSON.stringify([{ ...host, commit: '' }, options]);
  if (conditions(found) !== conditions(wanted))
    throw new Error(
      'the earlier bars are of another machine or other options: measure all of them anew, or some with --results and a directory that has none',
    );
  const isKept = (group: Group): boolean => {
    const measured = found.groups[group.name];
    if (measured === undefined) return false;
    if (!asked.includes(group)) return true;
    const isSameCode = measured.commit === wanted.host.commit && !measured.commit.endsWith('-dirty');
    return resume === true && isSameCode && measured.bars.every(({ figure }) => figure !== undefined);
  };
  const kept = GROUPS.filter(isKept).map(({ name }) => [name, found.groups[name]] as const);
  return Object.fromEntries(kept) as Progress['groups'];
}

function barsReport({ groups, host }: Progress): string {
  const missing = GROUPS.filter(({ name }) => !(name in groups)).map(({ name }) => name);
  const rest = missing.length === 0 ? '' : `- still to be measured: ${missing.join(', ')}\n`;
  const sessions = "- each session's report, with its commit and time, is in a folder of this one\n";
  return `# Bars\n\n${markdownTable(tableOf(groups))}\n\n${hostFacts({ ...host, commit: 'as the table says' })}\n${sessions}${rest}`;
}

/** The group's bars; one that is missed and says why if they cannot be measured, so that the others still are. */
async function barsOf(measureGroup: Group['measureGroup'], options: BenchArguments): Promise<Bar[]> {
  try {
    return await measureGroup(options);
  } catch (error) {
    interruption.throwIfAborted();
    return [{ name: `not measured: ${(error as Error).message}`, figure: undefined }];
  }
}

function tableOf(groups: Progress['groups']): string[][] {
  const rows = GROUPS.flatMap(({ name }) => {
    const { bars = [], commit = '' } = groups[name] ?? {};
    return bars.map((bar) => [
      bar.name,
      neededText(bar),
      bar.figure?.toFixed(2) ?? 'no valid run',
      isMet(bar) ? 'pass' : 'FAIL',
      commit,
    ]);
  });
  return [['bar', 'needed', 'measured', 'result', 'commit'], ...rows];
}

/** True if the bar's figure was measured and is good enough. */
export function isMet({ least, most, figure }: Bar): boolean {
  return (
    figure !== undefined &&
    figure >= (least ?? Number.NEGATIVE_INFINITY) &&
    figure <= (most ?? Number.POSITIVE_INFINITY)
  );
}

function neededText({ least, most }: Bar): string {
  if (least !== undefined) return `at least ${least}`;
  return most === undefined ? '' : `at most ${most}`;
}

function resultsDirectory({ results }: BenchArguments): string {
  return join(results, 'bars');
}

/** Bars that are measured together. */
interface Group {
  name: string;
  measureGroup: (options: BenchArguments) => Promise<Bar[]>;
}

/** A group that sets our best against QEMU's best, in one workload on one kind of disk. */
function group(what: What, disk: 'disk' | 'fast', needed: { speed: number; cpu?: number }): Group {
  const words = [what.operation, what.workload, what.memory, disk];
  return {
    name: words.filter((word) => word !== undefined).join('-'),
    measureGroup: (options) => against(options, what, disk === 'fast' ? FAST_STANDIN : options.dir, needed),
  };
}

/** All bars. Sizes are what the issue names unless `--size` makes everything smaller for a trial. */
const GROUPS: Group[] = [
  {
    name: 'save-dense-disk',
    measureGroup: (options) =>
      denseSave(options, { dir: options.dir, speed: 1.6, oneChannel: 1.8, cpu: 0.6 }),
  },
  {
    name: 'save-dense-fast',
    measureGroup: (options) =>
      denseSave(options, { dir: FAST_STANDIN, speed: 1.2, oneChannel: 2.2, cpu: 0.75, ceiling: 0.9 }),
  },
  { name: 'channel-counts', measureGroup: channelCounts },
  group(save('scattered'), 'disk', { speed: 6, cpu: 0.2 }),
  group(save('scattered'), 'fast', { speed: 6, cpu: 0.2 }),
  { name: 'save-idle-disk', measureGroup: (options) => idleSave(options, options.dir) },
  { name: 'save-idle-fast', measureGroup: (options) => idleSave(options, FAST_STANDIN) },
  group(save('fragmented'), 'fast', { speed: 2 }),
  group(save('private'), 'disk', { speed: 1, cpu: 1.1 }),
  group(save('private'), 'fast', { speed: 1, cpu: 1.1 }),
  group(restore('dense', 'warm'), 'fast', { speed: 1.4, cpu: 0.5 }),
  group(restore('dense', 'fresh'), 'fast', { speed: 1, cpu: 0.8 }),
  group(restore('private'), 'fast', { speed: 1, cpu: 1 }),
  group(restore('scattered', 'warm'), 'fast', { speed: 2 }),
  { name: 'huge-guest', measureGroup: hugeGuest },
];

type What = Pick<SessionPlan, 'operation' | 'workload' | 'memory'>;

function save(workload: WorkloadName): What {
  return { operation: 'save', workload };
}

function restore(workload: WorkloadName, memory?: MemoryState): What {
  return { operation: 'restore', workload, ...(memory === undefined ? {} : { memory }) };
}

type How = Pick<SessionPlan, 'channels' | 'stockChannels' | 'against' | 'rounds'>;

function measureBar(
  options: BenchArguments,
  what: What,
  dir: string,
  how: How,
  place = resultsDirectory(options),
): Promise<Results> {
  const guestBytes = what.workload === 'idle' ? 3 * dataBytes(options) : dataBytes(options);
  return measure({ ...what, ...how, guestBytes, engines: ['auto'], onlyDirectStock: true }, dir, place);
}

function dataBytes({ size }: BenchArguments): number {
  return size ?? 4 * 2 ** 30;
}

/** Those of `counts` that the options have, or all that they have. */
function someOf({ channels }: BenchArguments, counts: number[]): number[] {
  const some = channels.filter((count) => counts.includes(count));
  return some.length === 0 ? channels : some;
}

/** mapram's channel counts differ less than its runs do ({@link channelCounts} shows it), so that a few stand for all. */
function ourChannels(options: BenchArguments): number[] {
  return someOf(options, [1, 4]);
}

/** QEMU's differ: its best may be one, sixteen or more. All are tried where the bars are near; some of its runs take a minute. */
function theirChannels(options: BenchArguments): number[] {
  return someOf(options, [1, 16, 64]);
}

function bestAgainstBest(options: BenchArguments): How {
  return {
    channels: ourChannels(options),
    stockChannels: theirChannels(options),
    against: ['qemu'],
    rounds: options.runs,
  };
}

/** Rounds where a run takes seconds, and the disk or the memory behind it changes its speed by more than a bar leaves. */
function moreRounds({ runs }: BenchArguments): number {
  return Math.ceil(1.5 * runs);
}

/** Our best channel count against QEMU's best. */
async function against(
  options: BenchArguments,
  what: What,
  dir: string,
  needed: { speed: number; cpu?: number },
): Promise<Bar[]> {
  const all = { stockChannels: options.channels, rounds: moreRounds(options) };
  const how = { ...bestAgainstBest(options), ...(what.operation === 'restore' ? all : {}) };
  const results = await measureBar(options, what, dir, how);
  return againstBars(nameOf(what, dir, results), results, needed);
}

/** What was measured, on which kind of disk. */
function nameOf({ operation, workload, memory }: What, dir: string, { disk }: Results): string {
  const where = dir === FAST_STANDIN ? 'fast stand-in' : disk.fileSystem;
  return `${operation} ${workload}${memory === undefined ? '' : ` into ${memory} memory`}, ${where}`;
}

/** The bars that set our best channel count against QEMU's best. */
export function againstBars(name: string, results: Results, needed: { speed: number; cpu?: number }): Bar[] {
  const { session, series } = results;
  const [ours, theirs] = [bestOf(series, 'mapram'), bestOf(series, DIRECT_STOCK_TYPE)];
  const both = (ratio: typeof speedRatio) => (ours && theirs ? ratio(session.runs, ours, theirs) : undefined);
  return [
    ...voidRuns(name, results),
    { name: `${name}: x QEMU`, least: needed.speed, figure: both(speedRatio) },
    ...(needed.cpu === undefined
      ? []
      : [
          { name: `${name}: CPU, whole command, x QEMU`, most: needed.cpu, figure: both(cpuRatio) },
          {
            name: `${name}: CPU with kernel threads, x QEMU`,
            most: needed.cpu,
            figure: both(cpuRatioWithKernel),
          },
        ]),
  ];
}

/** A bar that is missed if there was a void run; none otherwise. */
function voidRuns(name: string, { session }: Results): Bar[] {
  const count = session.runs.filter(({ voided }) => voided !== undefined).length;
  return count === 0 ? [] : [{ name: `${name}: void runs`, most: 0, figure: count }];
}

async function denseSave(
  options: BenchArguments,
  {
    dir,
    ceiling,
    oneChannel,
    ...needed
  }: { dir: string; speed: number; cpu: number; oneChannel: number; ceiling?: number },
): Promise<Bar[]> {
  const results = await measureBar(options, save('dense'), dir, {
    ...bestAgainstBest(options),
    stockChannels: options.channels,
    rounds: moreRounds(options),
    against: ceiling === undefined ? ['qemu'] : ['qemu', 'fio'],
  });
  const { series } = results;
  const { runs } = results.session;
  const name = nameOf(save('dense'), dir, results);
  const [ours, theirs] = ['mapram', DIRECT_STOCK_TYPE].map((type) =>
    series.find((one) => one.type === type && one.channels === 1),
  );
  return [
    ...againstBars(name, results, needed),
    ...(ceiling === undefined
      ? []
      : [{ name: `${name}: x fio's median`, least: ceiling, figure: ceilingRatio(results) }]),
    {
      name: `${name}: 1 channel, x QEMU's 1`,
      least: oneChannel,
      figure: ours && theirs && speedRatio(runs, ours, theirs),
    },
  ];
}

/**
 * Our channel counts against each other. They get more rounds than the rest, for of eight equal series the worst and the best
 * differ by twice what runs do, and the fast disk, for there the engine is measured.
 */
async function channelCounts(options: BenchArguments): Promise<Bar[]> {
  const { channels } = options;
  const how = { channels, against: [], rounds: 4 * options.runs };
  const place = join(resultsDirectory(options), 'channel-counts');
  const results = await measureBar(options, save('dense'), FAST_STANDIN, how, place);
  const name = nameOf(save('dense'), FAST_STANDIN, results);
  return [
    ...voidRuns(name, results),
    { name: `${name}: worst channel count x best`, least: 0.9, figure: worstToBest(results) },
  ];
}

/** How fast the slowest channel count is, measured by the fastest; nothing if one of them has no valid run or there is nothing to compare. */
export function worstToBest({ session, series }: Pick<Results, 'session' | 'series'>): number | undefined {
  const ranked = series.toSorted((a, b) => a.milliseconds - b.milliseconds);
  const [best, worst] = [ranked[0], ranked.at(-1)];
  if (best === undefined || worst === undefined || best === worst) return undefined;
  return ranked.length < session.channels.length ? undefined : speedRatio(session.runs, worst, best);
}

/** Our rate of data over that of the best fio shape, within rounds. */
function ceilingRatio({ session, series }: Results): number | undefined {
  const ours = bestOf(series, 'mapram');
  const fio = series
    .filter(({ type }) => isCeiling(type))
    .toSorted((a, b) => b.dataBytesPerSecond - a.dataBytesPerSecond)[0];
  if (ours === undefined || fio === undefined) return undefined;
  const time = ratioWithinRounds(
    figures(session.runs, fio, ({ milliseconds }) => milliseconds),
    figures(session.runs, ours, ({ milliseconds }) => milliseconds),
  );
  // fio rounds the bytes up to whole requests.
  return time && (time * session.dataBytes) / ((fio.dataBytesPerSecond * fio.milliseconds) / 1000);
}

async function idleSave(options: BenchArguments, dir: string): Promise<Bar[]> {
  const results = await measureBar(options, save('idle'), dir, bestAgainstBest(options));
  const grown = results.session.runs.flatMap(({ type, round, measurement }) =>
    type === 'mapram' && round > 0 ? (measurement?.memoryGrownBytes ?? []) : [],
  );
  const name = nameOf(save('idle'), dir, results);
  return [
    ...againstBars(name, results, { speed: 50 }),
    {
      name: `${name}: growth of the guest's memory file, bytes`,
      most: 0,
      figure: grown.length === 0 ? undefined : Math.max(...grown),
    },
  ];
}

function hugeGuest(options: BenchArguments): Promise<Bar[]> {
  return withCleanup(async (cleanup) => {
    const directory = diskFor(options.dir, 2 * dataBytes(options), cleanup);
    const scale = await measureScale(dataBytes(options), options.runs, directory, cleanup, say);
    const place = resultsDirectory(options);
    mkdirSync(place, { recursive: true });
    writeFileSync(join(place, 'scale.json'), `${JSON.stringify(scale, undefined, 1)}\n`);
    const name = `guest of ${(256 * dataBytes(options)) / 2 ** 30} GiB with 1/256 touched`;
    return [
      { name: `${name}: save, x time of a dense guest of its data`, most: 1.3, figure: scale.saveRatio },
      {
        name: `${name}: restore, x time of a dense guest of its data`,
        most: 1.3,
        figure: scale.restoreRatio,
      },
      {
        name: `${name}: inspect, x time of a dense guest of its data`,
        most: 1.3,
        figure: scale.inspectRatio,
      },
      { name: `${name}: our RSS, MiB`, most: 300, figure: scale.peakBytes / 2 ** 20 },
    ];
  });
}
