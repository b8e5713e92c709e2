import { describe, expect, it } from 'vitest';
import type { Measurement, Run } from './measurement.ts';
import {
  bestOf,
  cpuRatio,
  engineCpuRatio,
  type Series,
  speedRatio,
  summarize,
  timeRatio,
} from './summary.ts';

const GIB = 2 ** 30;

function run(type: string, channels: number, round: number, milliseconds: number, cpuSeconds = 1): Run {
  const measurement: Measurement = {
    milliseconds,
    cpuSeconds,
    kernelCpuSeconds: 0.5,
    dataBytes: GIB / 2,
    details: {},
  };
  return { type, channels, round, measurement };
}

const RUNS: Run[] = [
  run('QEMU x', 2, 0, 9999),
  run('QEMU x', 2, 1, 1000, 4),
  run('QEMU x', 2, 2, 2000, 4),
  run('QEMU x', 2, 3, 3000, 4),
  run('mapram', 2, 1, 500),
  run('mapram', 2, 2, 500),
  { type: 'mapram', channels: 2, round: 3, voided: 'page 7 differs' },
  run('mapram', 1, 1, 1000),
];

describe('a summary', () => {
  const series = summarize(RUNS, 2 * GIB);
  const [, ours, theirs] = series as [Series, Series, Series];

  it('has a series for each type and channel count, ours first', () =>
    expect(series.map(({ type, channels }) => `${type} ${channels}`)).toEqual([
      'mapram 1',
      'mapram 2',
      'QEMU x 2',
    ]));

  it('counts neither the warm-up nor void runs', () => {
    expect(theirs).toMatchObject({
      runs: 3,
      milliseconds: 2000,
      fastestMilliseconds: 1000,
      slowestMilliseconds: 3000,
    });
    expect(ours).toMatchObject({ runs: 2, voided: ['page 7 differs'] });
  });

  it('has rates of guest RAM, and of data', () => {
    expect(theirs.bytesPerSecond).toBe(GIB);
    expect(theirs.pagesPerSecond).toBe(GIB / 4096);
    expect(theirs.dataBytesPerSecond).toBe(GIB / 4);
    expect(theirs).toMatchObject({ cpuSecondsPerGiB: 2, kernelCpuSecondsPerGiB: 0.25 });
  });

  it('finds the best channel count', () => expect(bestOf(series, 'mapram')).toBe(ours));

  it('forms ratios within rounds', () => {
    expect(speedRatio(RUNS, ours, theirs)).toBe(3);
    expect(timeRatio(RUNS, ours, theirs)).toBe(3 / 8);
    expect(cpuRatio(RUNS, ours, theirs)).toBe(0.25);
  });

  it('tells the CPU time of the engine, and where its pages came from', () => {
    const runs = RUNS.map((one) =>
      one.type === 'mapram' && one.measurement
        ? { ...one, measurement: { ...one.measurement, engineCpuSeconds: 0.5, source: 'pool' } }
        : one,
    );
    const [, mapram, qemu] = summarize(runs, 2 * GIB) as [Series, Series, Series];
    expect(mapram).toMatchObject({ cpuSecondsPerGiB: 0.5, engineCpuSecondsPerGiB: 0.25, source: 'pool' });
    expect(qemu.engineCpuSecondsPerGiB).toBe(qemu.cpuSecondsPerGiB);
    expect(engineCpuRatio(runs, mapram, qemu)).toBe(0.125);
  });

  it('leaves out what has only void runs', () =>
    expect(summarize([{ type: 'dd', round: 1, voided: 'no dd' }], GIB)).toEqual([]));
});
