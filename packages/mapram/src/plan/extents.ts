import { MapramError } from '../errors.ts';
import { PAGE_BYTES } from '../image/index.ts';

/**
 * Refuses extents that are not whole pages, not ascending and disjoint, or not inside their block.
 *
 * @returns bytes in all extents.
 * @throws MapramError E_USAGE.
 */
export function checkExtents(
  blocks: readonly { length: number }[],
  extents: readonly Float64Array[],
): number {
  if (extents.length !== blocks.length) {
    throw bad(`${blocks.length} RAM blocks need as many lists of extents, not ${extents.length}`);
  }
  return blocks.reduce(
    (sum, { length }, block) => sum + checkBlock(block, length, extents[block] as Float64Array),
    0,
  );
}

/** Bytes in all extents, which are what memory was scanned for. */
export function bytesIn(extents: readonly Float64Array[]): number {
  let bytes = 0;
  for (const list of extents)
    for (let index = 1; index < list.length; index += 3) bytes += list[index] as number;
  return bytes;
}

function checkBlock(block: number, blockLength: number, extents: Float64Array): number {
  if (extents.length % 3 !== 0) throw bad(`The extents of block ${block} are not made of three numbers each`);
  let end = 0;
  let bytes = 0;
  for (let index = 0; index < extents.length; index += 3) {
    const offset = extents[index] as number;
    const length = extents[index + 1] as number;
    const source = extents[index + 2] as number;
    // A division by a power of two is exact, and much cheaper than the remainder of two numbers.
    const whole =
      Number.isInteger(offset / PAGE_BYTES) && Number.isInteger(length / PAGE_BYTES) && length > 0;
    if (!whole || offset < end || offset + length > blockLength || !Number.isInteger(source) || source < 0) {
      throw bad(
        `Block ${block} of ${blockLength} bytes has a bad extent: offset ${offset}, length ${length}, source ${source}`,
      );
    }
    end = offset + length;
    bytes += length;
  }
  return bytes;
}

function bad(message: string): MapramError {
  return new MapramError('E_USAGE', message, { field: 'extents' });
}
