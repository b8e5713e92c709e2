import { describe, expect, it } from 'vitest';
import { barsFrom, isMet, worstToBest } from './bar.ts';
import { groupsOf } from './bar-groups.ts';
import { earlierGroups, type Progress } from './bars.ts';
import type { Run } from './measurement.ts';
import type { Results } from './report.ts';
import { DIRECT_STOCK_TYPE } from './stock-save.ts';
import { summarize } from './summary.ts';

const GIB = 2 ** 30;

function run(type: string, channels: number, milliseconds: number, cpuSeconds = 1, kernel = 1): Run {
  const measurement = { milliseconds, cpuSeconds, kernelCpuSeconds: kernel, dataBytes: GIB, details: {} };
  return { type, channels, round: 1, measurement };
}

function results(channels: number[], runs: Run[]): Results {
  return { session: { channels, runs }, series: summarize(runs, GIB) } as unknown as Results;
}

describe('a bar', () => {
  it('is met by its very limit, and missed by anything worse', () => {
    expect(isMet({ name: 'x', least: 1.6, figure: 1.6 })).toBe(true);
    expect(isMet({ name: 'x', least: 1.6, figure: 1.59 })).toBe(false);
    expect(isMet({ name: 'x', most: 0.6, figure: 0.6 })).toBe(true);
    expect(isMet({ name: 'x', most: 0.6, figure: 0.61 })).toBe(false);
  });

  it('is missed if nothing was measured', () => {
    expect(isMet({ name: 'x', most: 0.6, figure: undefined })).toBe(false);
    expect(isMet({ name: 'x', least: 1, figure: Number.NaN })).toBe(false);
  });
});

describe('the bars against QEMU', () => {
  const needed = { speed: 2, cpu: 0.5 };
  const theirs = [run(DIRECT_STOCK_TYPE, 1, 900, 9), run(DIRECT_STOCK_TYPE, 2, 600, 4)];

  it("set our best channel count against QEMU's best", () => {
    const bars = barsFrom(
      'save',
      results([1, 4], [run('mapram', 1, 300), run('mapram', 4, 200), ...theirs]),
      needed,
    );
    expect(bars).toEqual([
      { name: 'save: x QEMU', least: 2, figure: 3 },
      { name: 'save: CPU, whole command, x QEMU', most: 0.5, figure: 0.25 },
      { name: 'save: CPU with kernel threads, x QEMU', most: 0.5, figure: 0.4 },
    ]);
  });

  it('are missed if any run was void', () => {
    const voided: Run = { type: 'mapram', channels: 4, round: 1, voided: 'page 7 differs' };
    const [first] = barsFrom('save', results([1, 4], [run('mapram', 1, 300), voided, ...theirs]), needed);
    expect(first).toEqual({ name: 'save: void runs', most: 0, figure: 1 });
    expect(first && isMet(first)).toBe(false);
  });

  it('have no figure if one side has no valid run', () => {
    const bars = barsFrom('save', results([1], theirs), needed);
    expect(bars.map(({ figure }) => figure)).toEqual([undefined, undefined, undefined]);
  });
});

describe('the bars of not copying', () => {
  const ours = run('mapram', 4, 300, 1);
  const cheap = { ...ours, measurement: { ...ours.measurement, engineCpuSeconds: 0.25 } } as Run;
  const theirs = [1, 2, 8, 64].map((channels) => run(DIRECT_STOCK_TYPE, channels, 300 + channels * 50, 0.5));

  it("take QEMU's best of a few channel counts, and of mapram the engine's CPU time alone", () => {
    const session = results([1, 2, 8, 64], [cheap, ...theirs]);
    expect(barsFrom('save', session, { uncopied: { time: 0.75, cpu: 0.25 } })).toEqual([
      { name: "save: time, x QEMU's best of 2, 8", most: 0.75, figure: 0.75 },
      { name: "save: engine's CPU, x QEMU's best of 2, 8", most: 0.25, figure: 0.5 },
    ]);
  });

  it('are only shown where they need not reach anything', () => {
    const bars = barsFrom('restore', results([2, 4], [cheap, ...theirs]), { uncopied: {} });
    expect(bars).toHaveLength(2);
    expect(bars.every(isMet)).toBe(true);
  });
});

describe('our channel counts against each other', () => {
  it('are judged by the slowest and the fastest', () =>
    expect(
      worstToBest(results([1, 2, 4], [run('mapram', 1, 100), run('mapram', 2, 125), run('mapram', 4, 110)])),
    ).toBe(0.8));

  it('give nothing if one of them never worked, or if there is only one', () => {
    expect(worstToBest(results([1, 2], [run('mapram', 1, 100)]))).toBeUndefined();
    expect(worstToBest(results([1], [run('mapram', 1, 100)]))).toBeUndefined();
  });
});

describe('the bars of an earlier run', () => {
  const bars = [{ name: 'x', least: 1, figure: 2 }];
  const progress = (commit: string, groups: Progress['groups'], runs = 3): Progress => {
    const host = { commit, cpus: 2 } as unknown as Progress['host'];
    return { host, options: { channels: [1], dir: '/var/tmp', runs }, groups };
  };
  const found = progress('old', {
    'save-private-fast': { commit: 'older', began: '', bars },
    'restore-private-fast': { commit: 'old', began: '', bars },
    'huge-guest': { commit: 'old', began: '', bars },
    'a group that is no more': { commit: 'old', began: '', bars },
  });
  const kept = (now: string, bars?: string[], of = found) =>
    Object.keys(earlierGroups(progress(now, {}), of, groupsOf(bars ?? true)));

  it('are kept if they are not asked for, whatever their code', () => {
    expect(kept('new', ['restore', 'huge'])).toEqual(['save-private-fast']);
    expect(kept('new', ['save'])).toEqual(['restore-private-fast', 'huge-guest']);
    expect(kept('new')).toEqual([]);
  });

  it('are asked for by how their names begin', () => {
    expect(groupsOf(['save-idle', 'huge']).map(({ name }) => name)).toEqual([
      'save-idle-disk',
      'save-idle-fast',
      'huge-guest',
    ]);
    expect(() => groupsOf(['save', 'idle'])).toThrow("begin with 'idle'");
    expect(() => groupsOf(['save', ''])).toThrow("begin with ''");
  });

  it('are refused rather than lost if they are of other options', () => {
    const other = progress('old', found.groups, 5);
    expect(() => kept('old', ['save'], other)).toThrow('other options');
    expect(kept('old', undefined, other)).toEqual([]);
  });
});
