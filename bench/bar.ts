import { isCeiling } from './disk.ts';
import type { Run } from './measurement.ts';
import type { Results } from './report.ts';
import { ratioWithinRounds } from './statistics.ts';
import { DIRECT_STOCK_TYPE } from './stock-save.ts';
import {
  bestOf,
  cpuRatio,
  cpuRatioWithKernel,
  engineCpuRatio,
  figures,
  type Series,
  speedRatio,
  timeRatio,
} from './summary.ts';

/** One line of what mapram has to reach. */
export interface Bar {
  name: string;
  /** The figure must be at least, or at most, this; where neither is, it is only shown. */
  least?: number | undefined;
  most?: number | undefined;
  /** Absent where no valid run gave one; the bar is missed then. */
  figure: number | undefined;
}

/** True if the bar's figure was measured and is good enough. */
export function isMet({ least, most, figure }: Bar): boolean {
  return (
    figure !== undefined &&
    figure >= (least ?? Number.NEGATIVE_INFINITY) &&
    figure <= (most ?? Number.POSITIVE_INFINITY)
  );
}

/** What a session's figures must reach; what is absent is not asked for. */
export interface Needs {
  /** Our best channel count's speed over that of QEMU's best: at least. */
  speed?: number;
  /** Its CPU time over QEMU's, without and with kernel threads: at most. */
  cpu?: number;
  /** The speed of one channel over that of QEMU's one: at least. */
  oneChannel?: number;
  /** Its rate of data over that of fio's best shape: at least. */
  ceiling?: number;
  /** Bytes by which a save makes the guest's memory larger: at most. */
  growth?: number;
  /** Its time, and the engine's CPU time, over those of QEMU's best of {@link FEW} channels: at most, or only shown. */
  uncopied?: { time?: number; cpu?: number };
}

/** QEMU's channel counts that it is judged by where nothing is copied. */
export const FEW: number[] = [2, 4, 8];

/** Those of `counts` that are among `wanted`, or all of them. */
export function someOf(counts: number[], wanted: number[]): number[] {
  const some = counts.filter((count) => wanted.includes(count));
  return some.length === 0 ? counts : some;
}

/** The bars of a session. */
export function barsFrom(name: string, results: Results, needs: Needs): Bar[] {
  const { session, series } = results;
  const { runs, channels, stockChannels = channels } = session;
  const [ours, theirs] = [bestOf(series, 'mapram'), bestOf(series, DIRECT_STOCK_TYPE)];
  const bars = voidRuns(name, results);
  const add = (what: string, limit: Pick<Bar, 'least' | 'most'>, figure: number | undefined) =>
    bars.push({ name: `${name}: ${what}`, ...limit, figure });
  const ratio = (form: typeof timeRatio, a: Series | undefined, b: Series | undefined) =>
    a && b && form(runs, a, b);
  if (needs.speed !== undefined) add('x QEMU', { least: needs.speed }, ratio(speedRatio, ours, theirs));
  if (needs.cpu !== undefined) {
    add('CPU, whole command, x QEMU', { most: needs.cpu }, ratio(cpuRatio, ours, theirs));
    add('CPU with kernel threads, x QEMU', { most: needs.cpu }, ratio(cpuRatioWithKernel, ours, theirs));
  }
  if (needs.ceiling !== undefined) add("x fio's median", { least: needs.ceiling }, ceilingRatio(results));
  if (needs.oneChannel !== undefined) {
    const single = series.filter((one) => one.channels === 1);
    const figure = ratio(speedRatio, bestOf(single, 'mapram'), bestOf(single, DIRECT_STOCK_TYPE));
    add("1 channel, x QEMU's 1", { least: needs.oneChannel }, figure);
  }
  if (needs.uncopied !== undefined) {
    const few = someOf(stockChannels, FEW);
    const best = bestOf(
      series.filter((one) => few.includes(one.channels ?? 0)),
      DIRECT_STOCK_TYPE,
    );
    const rival = `x QEMU's best of ${few.join(', ')}`;
    add(`time, ${rival}`, { most: needs.uncopied.time }, ratio(timeRatio, ours, best));
    add(`engine's CPU, ${rival}`, { most: needs.uncopied.cpu }, ratio(engineCpuRatio, ours, best));
  }
  if (needs.growth !== undefined)
    add("growth of the guest's memory file, bytes", { most: needs.growth }, growth(runs));
  return bars;
}

/** A bar that is missed if there was a void run; none otherwise. */
export function voidRuns(name: string, { session }: Results): Bar[] {
  const count = session.runs.filter(({ voided }) => voided !== undefined).length;
  return count === 0 ? [] : [{ name: `${name}: void runs`, most: 0, figure: count }];
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

/** By how much the worst of our saves made the guest's memory larger. */
function growth(runs: Run[]): number | undefined {
  const grown = runs.flatMap(({ type, round, measurement }) =>
    type === 'mapram' && round > 0 ? (measurement?.memoryGrownBytes ?? []) : [],
  );
  return grown.length === 0 ? undefined : Math.max(...grown);
}
