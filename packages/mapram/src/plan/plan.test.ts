import fc from 'fast-check';
import { expect, test } from 'vitest';
import { planTransfer, type TransferPlan } from './plan.ts';

const PAGE = 4096;
const MIB = 1024 * 1024;

interface Range {
  block: number;
  offset: number;
  length: number;
  source: number;
}

/** What each channel moves, cut out of the extents as the engine does it. */
function channelsOf({ extents, splits }: TransferPlan): Range[][] {
  const channels = (splits[0]?.length ?? 0) + 1;
  return Array.from({ length: channels }, (_, channel) =>
    extents.flatMap((list, block) => {
      const start = channel === 0 ? 0 : (splits[block]?.[channel - 1] as number);
      const end = splits[block]?.[channel] ?? Number.POSITIVE_INFINITY;
      return extentsOf(list, block).flatMap((range) => {
        const offset = Math.max(range.offset, start);
        const length = Math.min(range.offset + range.length, end) - offset;
        return length > 0 ? [{ ...range, offset, length }] : [];
      });
    }),
  );
}

function extentsOf(list: Float64Array, block: number): Range[] {
  return Array.from({ length: list.length / 3 }, (_, index) => {
    const [offset, length, source] = list.subarray(index * 3, index * 3 + 3) as unknown as [
      number,
      number,
      number,
    ];
    return { block, offset, length, source };
  });
}

/** Blocks with extents: each block is gaps and runs of pages, each run with a source. */
const guestArbitrary = fc
  .array(
    fc.array(
      fc.tuple(
        fc.integer({ min: 0, max: 400 }),
        fc.integer({ min: 1, max: 900 }),
        fc.integer({ min: 0, max: 2 }),
      ),
      {
        maxLength: 12,
      },
    ),
    { maxLength: 4 },
  )
  .map((blocks) => {
    const extents = blocks.map((runs) => {
      let end = 0;
      return Float64Array.from(
        runs.flatMap(([gap, count, source]) => {
          const offset = end + gap * PAGE;
          end = offset + count * PAGE;
          return [offset, count * PAGE, source];
        }),
      );
    });
    const lengths = extents.map((list) => ({ usedLength: (list.at(-3) ?? 0) + (list.at(-2) ?? 0) + PAGE }));
    return { blocks: lengths, extents };
  });

/** Every page of data as one text, in image order. */
function pagesOf(ranges: Range[]): string[] {
  return ranges.flatMap(({ block, offset, length, source }) =>
    Array.from({ length: length / PAGE }, (_, page) => `${block}:${offset + page * PAGE}:${source}`),
  );
}

function cellsOf(channel: Range[], chunkBytes: number): Set<string> {
  const cells = new Set<string>();
  for (const { block, offset, length } of channel) {
    const last = Math.floor((offset + length - 1) / chunkBytes);
    for (let cell = Math.floor(offset / chunkBytes); cell <= last; cell += 1) cells.add(`${block}:${cell}`);
  }
  return cells;
}

function bytesOf(channel: Range[]): number {
  return channel.reduce((sum, { length }) => sum + length, 0);
}

function expectBalanced(plan: TransferPlan, chunkBytes: number): void {
  const channels = channelsOf(plan);
  const ideal = plan.dataBytes / channels.length;
  for (const channel of channels) {
    expect(Math.abs(bytesOf(channel) - ideal)).toBeLessThanOrEqual(chunkBytes);
  }
}

test('every page of data is planned once, in image order, in whole cells, and balanced', () => {
  const channelCounts = fc.integer({ min: 1, max: 128 });
  fc.assert(
    fc.property(
      guestArbitrary,
      channelCounts,
      fc.constantFrom(MIB, 4 * MIB),
      (guest, channels, chunkBytes) => {
        const plan = planTransfer({ ...guest, channels, chunkBytes });
        const moved = channelsOf(plan);
        if (guest.blocks.length > 0) expect(moved).toHaveLength(channels);
        const wanted = guest.extents.flatMap(extentsOf);
        expect(pagesOf(moved.flat())).toEqual(pagesOf(wanted));
        expect(plan.dataBytes).toBe(wanted.reduce((sum, { length }) => sum + length, 0));
        const cells = moved.map((channel) => cellsOf(channel, chunkBytes));
        const distinct = new Set(cells.flatMap((set) => [...set]));
        expect(cells.reduce((sum, set) => sum + set.size, 0)).toBe(distinct.size);
        for (const list of plan.splits)
          for (const split of list) expect(split % chunkBytes === 0 || split > 0).toBe(true);
        expectBalanced(plan, chunkBytes);
      },
    ),
  );
});

test('an extent is split only where a channel ends', () => {
  const extents = [Float64Array.of(PAGE, 64 * MIB - PAGE, 3)];
  const plan = planTransfer({
    blocks: [{ usedLength: 64 * MIB }],
    extents,
    channels: 2,
    chunkBytes: 4 * MIB,
  });
  expect(plan.splits).toEqual([Float64Array.of(32 * MIB)]);
  expect(channelsOf(plan)).toEqual([
    [{ block: 0, offset: PAGE, length: 32 * MIB - PAGE, source: 3 }],
    [{ block: 0, offset: 32 * MIB, length: 32 * MIB, source: 3 }],
  ]);
});

test('as many cells as channels give each channel one', () => {
  const extents = [Float64Array.of(0, 128 * MIB, 0)];
  const plan = planTransfer({ blocks: [{ usedLength: 128 * MIB }], extents, channels: 128, chunkBytes: MIB });
  expect(channelsOf(plan).map(bytesOf)).toEqual(Array<number>(128).fill(MIB));
});

test('a guest without data gives empty channels', () => {
  const plan = planTransfer({
    blocks: [{ usedLength: MIB }],
    extents: [new Float64Array(0)],
    channels: 3,
    chunkBytes: MIB,
  });
  expect(channelsOf(plan)).toEqual([[], [], []]);
  expect(plan.dataBytes).toBe(0);
});

test('the cost is that of the data: an idle guest of 16 TiB', () => {
  const extents = [Float64Array.of(0, MIB, 0, 2 ** 43, PAGE, 0, 2 ** 44 - MIB, MIB, 0)];
  const plan = planTransfer({ blocks: [{ usedLength: 2 ** 44 }], extents, channels: 2, chunkBytes: MIB });
  expect(plan.dataBytes).toBe(2 * MIB + PAGE);
  expectBalanced(plan, MIB);
});
