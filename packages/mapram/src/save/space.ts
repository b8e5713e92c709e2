import { dirname } from 'node:path';
import { MapramError } from '../errors.ts';
import { bitmapBytes, PAGE_BYTES } from '../image/index.ts';
import type { JobContext } from '../job.ts';
import { freeBytes, measureMemory } from '../native.ts';
import type { Transfer } from '../options.ts';
import { bytesIn, planTransfer } from '../plan/index.ts';
import type { SourceMemory } from './write-image.ts';

/** Shorter runs of zero pages between data are written along with it (JOINED_ZERO_PAGES in crates/engine/src/transfer). */
const JOINED_HOLE_BYTES: number = 16 * PAGE_BYTES;
/** More than the state of a guest's devices takes; it is not known before the guest is stopped. */
const DEVICE_STATE_BYTES: number = 4 * 1024 * 1024;

/**
 * Bytes that an image may take on the disk: no less than it will, unless the guest goes on to fill memory.
 *
 * @param blocks used length of each RAM block.
 * @param extents the data of each block, three numbers an extent: offset in the block, length, source.
 */
export function spaceBound(
  blocks: readonly { usedLength: number }[],
  extents: readonly Float64Array[],
): number {
  return extents.reduce((sum, list) => sum + joinedBytes(list), metadataBytes(blocks));
}

/**
 * Refuses an image that the target's file system has no room for. Memory that was never touched needs none. Touched pages are
 * read only if they could be too many, for they may hold zeros; a running guest may still come to need more.
 *
 * @returns bytes that were touched.
 * @throws {MapramError} E_NO_SPACE
 */
export async function requireSpace(
  path: string,
  { blocks, memory }: SourceMemory,
  how: Transfer,
  job: JobContext,
): Promise<number> {
  const free = freeBytes(dirname(path));
  const extents = await memory.scan();
  const touched = bytesIn(extents);
  if (spaceBound(blocks, extents) <= free) return touched;
  const lengths = blocks.map(({ usedLength }) => ({ length: usedLength }));
  const { channels } = planTransfer({ ...how, blocks: lengths, extents });
  const measured = await job.run(measureMemory(memory, channels, how));
  const needed = measured.transferredBytes + metadataBytes(blocks);
  if (needed <= free) return touched;
  const message = `The image needs up to ${needed} bytes, and its file system has ${free} left`;
  throw new MapramError('E_NO_SPACE', message, { path });
}

/** Bytes of everything but pages. Headers and bitmaps stand alone among holes, so each takes one more page of the file. */
function metadataBytes(blocks: readonly { usedLength: number }[]): number {
  return blocks.reduce(
    (sum, { usedLength }) => sum + bitmapBytes(usedLength) + 2 * PAGE_BYTES,
    DEVICE_STATE_BYTES,
  );
}

/** Bytes from each extent's start to its end, and across holes that are written too. */
function joinedBytes(extents: Float64Array): number {
  let sum = 0;
  let end = Number.NEGATIVE_INFINITY;
  for (let index = 0; index < extents.length; index += 3) {
    const offset = extents[index] as number;
    const length = extents[index + 1] as number;
    if (offset - end <= JOINED_HOLE_BYTES) sum += offset - end;
    sum += length;
    end = offset + length;
  }
  return sum;
}
