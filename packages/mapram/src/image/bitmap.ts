import { PAGE_BYTES } from './format.ts';

/**
 * Helpers over a block's page bitmap as the image stores it: bit *i* is page *i*, least significant bit of byte 0 first, in
 * whole 64-bit words. They walk 32-bit words, so that the 32 MiB bitmap of a 1 TiB block takes milliseconds, and assume a
 * little-endian host, as the format itself does: it has no mark for the other order.
 */

/** Number of set bits. */
export function countSetPages(bitmap: Uint8Array): number {
  const words = wordsOf(bitmap);
  let total = 0;
  // By index: an iterator takes ten times as long, which is a quarter of a second for a block of 1 TiB.
  for (let index = 0; index < words.length; index += 1) {
    const word = words[index] as number;
    if (word !== 0) total += popcount(word);
  }
  return total;
}

/** The last page whose bit is set, or -1. */
export function highestSetPage(bitmap: Uint8Array): number {
  const words = wordsOf(bitmap);
  for (let index = words.length - 1; index >= 0; index -= 1) {
    const word = words[index] as number;
    if (word !== 0) return index * 32 + 31 - Math.clz32(word);
  }
  return -1;
}

/** The first page whose bit is set, or -1. */
export function lowestSetPage(bitmap: Uint8Array): number {
  const words = wordsOf(bitmap);
  for (let index = 0; index < words.length; index += 1) {
    const word = words[index] as number;
    if (word !== 0) return index * 32 + 31 - Math.clz32(word & -word);
  }
  return -1;
}

/**
 * The parts of a block that hold any data, for planning a restore: maximal runs of grid cells with at least one set page,
 * ascending, the last one cut at `usedLength`.
 *
 * @param usedLength bytes in the block.
 * @param gridBytes bytes in a cell; a power of two, at least 128 KiB.
 * @returns extents of three numbers each: offset in the block, length, and source 0.
 */
export function dataExtents(bitmap: Uint8Array, usedLength: number, gridBytes: number): Float64Array {
  const words = wordsOf(bitmap);
  const cellWords = gridBytes / PAGE_BYTES / 32;
  if (!Number.isInteger(Math.log2(cellWords)) || cellWords < 1) {
    throw new RangeError(`grid of ${gridBytes} bytes is no power of two of at least 128 KiB`);
  }
  const extents: number[] = [];
  let start = -1;
  for (let from = 0; from < words.length; from += cellWords) {
    const offset = Math.min(from * 32 * PAGE_BYTES, usedLength);
    const hasData = anySet(words, from, Math.min(from + cellWords, words.length));
    if (hasData && start < 0) start = offset;
    if (!hasData && start >= 0) {
      extents.push(start, offset - start, 0);
      start = -1;
    }
  }
  if (start >= 0) extents.push(start, usedLength - start, 0);
  return Float64Array.from(extents);
}

function wordsOf(bitmap: Uint8Array): Uint32Array {
  // Copied as a plain array, for a Buffer's slice would be a view.
  const aligned = bitmap.byteOffset % 4 === 0 ? bitmap : new Uint8Array(bitmap);
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.length / 4);
}

function anySet(words: Uint32Array, from: number, end: number): boolean {
  for (let index = from; index < end; index += 1) {
    if (words[index] !== 0) return true;
  }
  return false;
}

/** Set bits of a 32-bit word, by adding neighbours in ever wider fields. */
function popcount(word: number): number {
  const pairs = word - ((word >>> 1) & 0x55555555);
  const nibbles = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333);
  const bytes = (nibbles + (nibbles >>> 4)) & 0x0f0f0f0f;
  return Math.imul(bytes, 0x01010101) >>> 24;
}
