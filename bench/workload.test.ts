import { describe, expect, it } from 'vitest';
import { contents, hasData, isData, makeWorkload, PAGE, PIECE, WORKLOADS } from './workload.ts';

const MIB = 2 ** 20;

describe('what the guests hold', () => {
  it.each([
    ['dense', 0.9],
    ['private', 0.9],
    ['scattered', 0.9],
    ['idle', 1 / 12],
    ['fragmented', 0.5],
  ] as const)('%s: the share of data', (name, share) => {
    const workload = makeWorkload(name, 240 * MIB);
    expect(workload.dataBytes / workload.bytes).toBeCloseTo(share, 3);
  });

  it('dense: zero pages come in runs of 1 MiB', () => {
    const workload = makeWorkload('dense', 120 * MIB);
    const runs = new Set<number>();
    let run = 0;
    for (let page = 0; page < workload.bytes / PAGE; page++) {
      if (!isData(workload, page)) run++;
      else if (run > 0) {
        runs.add(run);
        run = 0;
      }
    }
    // Two runs may touch where two groups meet.
    for (const length of runs) expect(length % 256).toBe(0);
  });

  it('scattered: every tenth page is zero', () => {
    const workload = makeWorkload('scattered', 8 * MIB);
    expect([8, 9, 10, 19, 20].map((page) => isData(workload, page))).toEqual([
      true,
      false,
      true,
      false,
      true,
    ]);
  });

  it('idle: a piece is data throughout or not at all', () => {
    const workload = makeWorkload('idle', 48 * MIB);
    for (let offset = 0; offset < workload.bytes; offset += PIECE) {
      const pages = Array.from({ length: PIECE / PAGE }, (_, page) => isData(workload, offset / PAGE + page));
      expect(new Set(pages).size).toBe(1);
      expect(hasData(workload, offset)).toBe(pages[0]);
    }
  });

  it.each(WORKLOADS)(
    '%s: a page has bytes other than zero exactly if it is data, and they are always the same',
    (name) => {
      const workload = makeWorkload(name, 24 * MIB);
      for (const offset of [0, 10 * MIB, 22 * MIB]) {
        const bytes = contents(workload, offset, Buffer.alloc(PIECE));
        for (let at = 0; at < bytes.length; at += PAGE)
          expect(bytes.subarray(at, at + PAGE).some((byte) => byte !== 0)).toBe(
            isData(workload, (offset + at) / PAGE),
          );
        expect(contents(makeWorkload(name, 24 * MIB), offset, Buffer.alloc(PIECE)).equals(bytes)).toBe(true);
      }
    },
  );

  it('no two pages are equal', () => {
    const workload = makeWorkload('scattered', 8 * MIB);
    const page = (offset: number) => contents(workload, offset, Buffer.alloc(PIECE)).subarray(0, PAGE);
    const [first, second] = [page(0), page(PIECE)];
    expect(first.equals(second)).toBe(false);
  });
});
