import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type BenchArguments, FAST_STANDIN } from './arguments.ts';
import { type Bar, barsFrom, FEW, type Needs, someOf, voidRuns, worstToBest } from './bar.ts';
import type { MemoryKind } from './guest-memory.ts';
import { diskFor, measure, say } from './measure.ts';
import { describeWhat, type Results } from './report.ts';
import type { MemoryState } from './restore.ts';
import { measureScale } from './scale.ts';
import { type SessionPlan, sessionName, type What } from './session.ts';
import { withCleanup } from './with-cleanup.ts';
import type { WorkloadName } from './workload.ts';

/** Bars that are measured together. */
export interface Group {
  name: string;
  measureGroup: (options: BenchArguments) => Promise<Bar[]>;
}

const HUGE_ON_DISK: Needs = { uncopied: { time: 0.75, cpu: 0.25 } };
const HUGE_ON_FAST: Needs = { uncopied: { time: 1, cpu: 0.4 } };
const SMALL_ON_FAST: Needs = { uncopied: { time: 1, cpu: 0.6 } };

/** All bars. Sizes are what the issues name unless `--size` makes everything smaller for a trial. */
export const GROUPS: Group[] = [
  group(save('dense'), 'disk', { speed: 1.6, oneChannel: 1.8, cpu: 0.6 }),
  group(save('dense'), 'fast', { speed: 1.2, oneChannel: 2.2, cpu: 0.75, ceiling: 0.9, ...SMALL_ON_FAST }),
  { name: 'channel-counts', measureGroup: channelCounts },
  group(save('dense', 'huge'), 'disk', HUGE_ON_DISK),
  group(save('dense', 'huge'), 'fast', HUGE_ON_FAST),
  group(save('dense', 'hugetlb'), 'disk', HUGE_ON_DISK),
  group(save('dense', 'hugetlb'), 'fast', HUGE_ON_FAST),
  group(save('scattered'), 'disk', { speed: 6, cpu: 0.2 }),
  group(save('scattered'), 'fast', { speed: 6, cpu: 0.2 }),
  group(save('idle'), 'disk', { speed: 50, growth: 0 }),
  group(save('idle'), 'fast', { speed: 50, growth: 0 }),
  group(save('fragmented'), 'fast', { speed: 2 }),
  group({ operation: 'save', workload: 'private' }, 'disk', { speed: 1, cpu: 1.1 }),
  group({ operation: 'save', workload: 'private' }, 'fast', { speed: 1, cpu: 1.1 }),
  group(restore('dense', 'warm'), 'fast', { speed: 1.4, cpu: 0.5 }),
  group(restore('dense', 'fresh'), 'fast', { speed: 1, cpu: 0.8 }),
  group(restore('dense', 'warm', 'hugetlb'), 'disk', { uncopied: {} }),
  group(restore('dense', 'warm', 'hugetlb'), 'fast', { uncopied: {} }),
  group({ operation: 'restore', workload: 'private' }, 'fast', { speed: 1, cpu: 1 }),
  group(restore('scattered', 'warm'), 'fast', { speed: 2 }),
  { name: 'huge-guest', measureGroup: hugeGuest },
];

function save(workload: WorkloadName, memory: MemoryKind = 'small'): What {
  return { operation: 'save', workload, memory };
}

function restore(workload: WorkloadName, state: MemoryState, memory: MemoryKind = 'small'): What {
  return { operation: 'restore', workload, memory, state };
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

/** Where the bars and the reports of their sessions go. */
export function barsDirectory({ results }: BenchArguments): string {
  return join(results, 'bars');
}

/** A group of one session, whose bars set our best channel count against QEMU's. */
function group(what: What, disk: 'disk' | 'fast', needs: Needs): Group {
  return {
    name: `${sessionName(what)}-${disk}`,
    measureGroup: async (options) => {
      const dir = disk === 'fast' ? FAST_STANDIN : options.dir;
      const results = await measureOne(options, what, dir, howFor(options, what, needs));
      return barsFrom(nameOf(what, dir, results), results, needs);
    },
  };
}

type How = Pick<SessionPlan, 'channels' | 'stockChannels' | 'against' | 'rounds'>;

function howFor({ channels, runs }: BenchArguments, { operation, workload }: What, needs: Needs): How {
  // There a run takes seconds, and the disk or the memory behind it changes its speed by more than a bar leaves.
  const isNear = operation === 'restore' || workload === 'dense';
  // QEMU's best may be one, sixteen or more channels. All are tried where the bars are near; some of its runs take a minute.
  const theirs = isNear ? channels : someOf(channels, [1, 16, 64]);
  return {
    // Ours differ less than runs do (the bar of channel counts shows it), so that a few stand for all.
    channels: someOf(channels, [1, 4]),
    stockChannels: needs.speed === undefined ? someOf(channels, FEW) : theirs,
    against: needs.ceiling === undefined ? ['qemu'] : ['qemu', 'fio'],
    rounds: isNear ? Math.ceil(1.5 * runs) : runs,
  };
}

function measureOne(
  options: BenchArguments,
  what: What,
  dir: string,
  how: How,
  place = barsDirectory(options),
): Promise<Results> {
  const guestBytes = what.workload === 'idle' ? 3 * dataBytes(options) : dataBytes(options);
  const plan: SessionPlan = { ...what, ...how, guestBytes, engines: ['auto'], copies: ['auto'] };
  return measure({ ...plan, onlyDirectStock: true }, dir, place);
}

function dataBytes({ size }: BenchArguments): number {
  return size ?? 4 * 2 ** 30;
}

/** What was measured, on which kind of disk. */
function nameOf(what: What, dir: string, { disk }: Results): string {
  return `${describeWhat(what)}, ${dir === FAST_STANDIN ? 'fast stand-in' : disk.fileSystem}`;
}

/**
 * Our channel counts against each other. They get more rounds than the rest, for of eight equal series the worst and the best
 * differ by twice what runs do, and the fast disk, for there the engine is measured.
 */
async function channelCounts(options: BenchArguments): Promise<Bar[]> {
  const { channels, runs } = options;
  const how: How = { channels, against: [], rounds: 4 * runs };
  const place = join(barsDirectory(options), 'channel-counts');
  const results = await measureOne(options, save('dense'), FAST_STANDIN, how, place);
  const name = nameOf(save('dense'), FAST_STANDIN, results);
  return [
    ...voidRuns(name, results),
    { name: `${name}: worst channel count x best`, least: 0.9, figure: worstToBest(results) },
  ];
}

function hugeGuest(options: BenchArguments): Promise<Bar[]> {
  return withCleanup(async (cleanup) => {
    const directory = diskFor(options.dir, 2 * dataBytes(options), cleanup);
    const scale = await measureScale(dataBytes(options), options.runs, directory, cleanup, say);
    const place = barsDirectory(options);
    mkdirSync(place, { recursive: true });
    writeFileSync(join(place, 'scale.json'), `${JSON.stringify(scale, undefined, 1)}\n`);
    const name = `guest of ${(256 * dataBytes(options)) / 2 ** 30} GiB with 1/256 touched`;
    const times = Object.entries(scale.ratios).map(([command, figure]) => ({
      name: `${name}: ${command}, x time of a dense guest of its data`,
      ...{ most: 1.3, figure },
    }));
    return [...times, { name: `${name}: our RSS, MiB`, most: 300, figure: scale.peakBytes / 2 ** 20 }];
  });
}
