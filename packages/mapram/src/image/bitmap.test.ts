import fc from 'fast-check';
import { expect, test } from 'vitest';
import { countSetPages, dataExtents, highestSetPage, lowestSetPage } from './bitmap.ts';
import { bitmapOf } from './read.fixture.ts';

const PAGE = 4096;

/** Bits of a block of up to 2,000 pages, sparse or dense, as whole words and at any alignment. */
const bitsArbitrary = fc.oneof(
  fc.array(fc.boolean(), { minLength: 1, maxLength: 2000 }),
  fc
    .array(fc.tuple(fc.boolean(), fc.integer({ min: 1, max: 300 })), { minLength: 1, maxLength: 8 })
    .map((runs) => runs.flatMap(([bit, count]) => Array<boolean>(count).fill(bit))),
);

function encode(bits: boolean[], shift: number): Uint8Array {
  const bitmap = bitmapOf(
    bits.length * PAGE,
    bits.flatMap((bit, page) => (bit ? [page] : [])),
  );
  const shifted = new Uint8Array(bitmap.length + shift);
  shifted.set(bitmap, shift);
  return shifted.subarray(shift);
}

function naiveRuns(bits: boolean[]): { first: number; count: number }[] {
  const runs: { first: number; count: number }[] = [];
  bits.forEach((bit, page) => {
    const last = runs.at(-1);
    if (bit && last !== undefined && last.first + last.count === page) last.count += 1;
    else if (bit) runs.push({ first: page, count: 1 });
  });
  return runs;
}

test('the count and the outermost pages equal the naive oracle', () => {
  fc.assert(
    fc.property(bitsArbitrary, fc.integer({ min: 0, max: 7 }), (bits, shift) => {
      const bitmap = encode(bits, shift);
      expect(countSetPages(Buffer.from(bitmap.buffer, shift))).toBe(bits.filter(Boolean).length);
      expect(countSetPages(bitmap)).toBe(bits.filter(Boolean).length);
      expect(highestSetPage(bitmap)).toBe(bits.lastIndexOf(true));
      expect(lowestSetPage(bitmap)).toBe(bits.indexOf(true));
    }),
  );
});

test('data extents are the maximal runs of grid cells with a set page', () => {
  fc.assert(
    fc.property(bitsArbitrary, fc.constantFrom(0x20000, 0x100000, 0x400000), (bits, grid) => {
      const cellPages = grid / PAGE;
      const cells = Array.from({ length: Math.ceil(bits.length / cellPages) }, (_, cell) =>
        bits.slice(cell * cellPages, (cell + 1) * cellPages).includes(true),
      );
      const expected = naiveRuns(cells).flatMap(({ first, count }) => {
        const end = Math.min((first + count) * grid, bits.length * PAGE);
        return [first * grid, end - first * grid, 0];
      });
      expect([...dataExtents(encode(bits, 0), bits.length * PAGE, grid)]).toEqual(expected);
    }),
  );
});

test('a grid that bitmap words do not divide is refused', () => {
  expect(() => dataExtents(new Uint8Array(8), PAGE, 0x10000)).toThrow(RangeError);
  expect(() => dataExtents(new Uint8Array(8), PAGE, 0x180000)).toThrow(RangeError);
});

test('the 32 MiB bitmap of a 1 TiB block is walked', () => {
  const bitmap = new Uint8Array(32 * 1024 * 1024).fill(0xff);
  bitmap[12345678] = 0xfe;
  const started = performance.now();
  expect(countSetPages(bitmap)).toBe(2 ** 28 - 1);
  expect([...dataExtents(bitmap, 2 ** 40, 0x400000)]).toEqual([0, 2 ** 40, 0]);
  console.log(`1 TiB bitmap counted and cut into extents: ${Math.round(performance.now() - started)} ms`);
});
