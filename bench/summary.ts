import type { Measurement, Run } from './measurement.ts';
import { type InRound, median, ratioWithinRounds } from './statistics.ts';
import { PAGE } from './workload.ts';

/** All counted runs of one type with one channel count, in figures. Absent figures: nobody measured them. */
export interface Series {
  type: string;
  channels?: number;
  /** Counted runs. */
  runs: number;
  /** Why some runs do not count. */
  voided: string[];
  milliseconds: number;
  fastestMilliseconds: number;
  slowestMilliseconds: number;
  /** Bytes of guest RAM a second. */
  bytesPerSecond: number;
  pagesPerSecond: number;
  cpuSecondsPerGiB: number;
  /** Without QEMU's share in mapram's work, and without the start of Node. */
  engineCpuSecondsPerGiB: number;
  kernelCpuSecondsPerGiB: number;
  /** Where mapram took pages from or put them; more than one if its runs differ. */
  source?: string;
  pauseMilliseconds?: number;
  /** Bytes that reached the disk or came from it, a second: what is set against the disk's ceiling. */
  dataBytesPerSecond: number;
}

/** Sums up runs over a guest of `guestBytes`: mapram first, then QEMU, then the disk. Types without a valid run are left out. */
export function summarize(runs: Run[], guestBytes: number): Series[] {
  const groups = new Map<string, Run[]>();
  for (const run of runs.filter(({ round }) => round > 0)) {
    const key = `${run.type}\n${run.channels}`;
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  const types = [...new Set(runs.map(({ type }) => type))].sort(
    (a, b) => rank(a) - rank(b) || (a < b ? -1 : 1),
  );
  return [...groups.values()]
    .flatMap((group) => summarizeGroup(group, guestBytes))
    .sort((a, b) => types.indexOf(a.type) - types.indexOf(b.type) || (a.channels ?? 0) - (b.channels ?? 0));
}

function rank(type: string): number {
  return ['mapram', 'QEMU', 'fio', 'dd'].findIndex((word) => type.startsWith(word));
}

function summarizeGroup(group: Run[], guestBytes: number): Series[] {
  const measured = group.flatMap(({ measurement }) => measurement ?? []);
  const [first] = group;
  if (first === undefined || measured.length === 0) return [];
  const times = measured.map(({ milliseconds }) => milliseconds);
  const milliseconds = median(times);
  const pauses = measured.flatMap(({ pauseMilliseconds }) => pauseMilliseconds ?? []);
  const sources = [...new Set(measured.flatMap(({ source }) => source ?? []))];
  const cpu = (figure: typeof processesCpu) => median(measured.map(figure)) / (guestBytes / 2 ** 30);
  return [
    {
      type: first.type,
      ...(first.channels === undefined ? {} : { channels: first.channels }),
      runs: measured.length,
      voided: group.flatMap(({ voided }) => voided ?? []),
      milliseconds,
      fastestMilliseconds: Math.min(...times),
      slowestMilliseconds: Math.max(...times),
      bytesPerSecond: (guestBytes / milliseconds) * 1000,
      pagesPerSecond: (guestBytes / PAGE / milliseconds) * 1000,
      cpuSecondsPerGiB: cpu(processesCpu),
      engineCpuSecondsPerGiB: cpu(engineCpu),
      kernelCpuSecondsPerGiB: cpu(({ kernelCpuSeconds }) => kernelCpuSeconds),
      ...(sources.length === 0 ? {} : { source: sources.join(', ') }),
      ...(pauses.length === 0 ? {} : { pauseMilliseconds: median(pauses) }),
      dataBytesPerSecond: median(measured.map(({ dataBytes, milliseconds: ms }) => (dataBytes / ms) * 1000)),
    },
  ];
}

/** The series of a type with the least median time. */
export function bestOf(series: Series[], type: string): Series | undefined {
  return series.filter((one) => one.type === type).toSorted((a, b) => a.milliseconds - b.milliseconds)[0];
}

/** A figure of every valid, counted run of a series. */
export function figures(
  runs: Run[],
  series: Series,
  figure: (measurement: Measurement) => number,
): InRound[] {
  return runs.flatMap(({ type, channels, round, measurement }) =>
    round > 0 && type === series.type && channels === series.channels && measurement !== undefined
      ? [{ round, value: figure(measurement) }]
      : [],
  );
}

const time = ({ milliseconds }: Measurement) => milliseconds;
const processesCpu = ({ cpuSeconds }: Measurement) => cpuSeconds;
const engineCpu = ({ engineCpuSeconds, cpuSeconds }: Measurement) => engineCpuSeconds ?? cpuSeconds;
const allCpu = ({ cpuSeconds, kernelCpuSeconds }: Measurement) => cpuSeconds + kernelCpuSeconds;

/** How many times as fast `ours` is as `theirs`, formed within rounds. */
export function speedRatio(runs: Run[], ours: Series, theirs: Series): number | undefined {
  return ratioWithinRounds(figures(runs, theirs, time), figures(runs, ours, time));
}

/** What part of the time of `theirs` is taken by `ours`, formed within rounds. */
export function timeRatio(runs: Run[], ours: Series, theirs: Series): number | undefined {
  return ratioWithinRounds(figures(runs, ours, time), figures(runs, theirs, time));
}

/** The same of the CPU time, without QEMU's share in mapram's work and the start of Node. */
export function engineCpuRatio(runs: Run[], ours: Series, theirs: Series): number | undefined {
  return ratioWithinRounds(figures(runs, ours, engineCpu), figures(runs, theirs, engineCpu));
}

/** What part of the CPU time of `theirs` is used by `ours`, processes alone, formed within rounds. */
export function cpuRatio(runs: Run[], ours: Series, theirs: Series): number | undefined {
  return ratioWithinRounds(figures(runs, ours, processesCpu), figures(runs, theirs, processesCpu));
}

/** The same with the kernel threads that worked meanwhile. */
export function cpuRatioWithKernel(runs: Run[], ours: Series, theirs: Series): number | undefined {
  return ratioWithinRounds(figures(runs, ours, allCpu), figures(runs, theirs, allCpu));
}
