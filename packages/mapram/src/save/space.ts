import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { RECORD_BYTES } from '../device-record.ts';
import { MapramError } from '../errors.ts';
import { bitmapBytes, layoutImage, PAGE_BYTES } from '../image/index.ts';
import type { JobContext } from '../job.ts';
import { freeBytes, joinedZeroPages, measureMemory } from '../native.ts';
import { bytesIn, planTransfer } from '../plan/index.ts';
import type { SourceMemory, Target } from './write-image.ts';

/** More than the state of a guest's devices takes; it is not known before the guest is stopped. */
const DEVICE_STATE_BYTES: number = 4 * 1024 * 1024;
/** A file system that gives back the space of removed files is waited for until it has given none for so long. */
const STANDSTILL_MS = 1_500;
const LOOK_AGAIN_MS = 100;

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
 * Refuses an image that its target has no room for. On a file system, memory that was never touched needs none. Touched pages are
 * read only if they could be too many, for they may hold zeros; a running guest may still come to need more. A device has to hold
 * all of the guest's memory.
 *
 * @returns bytes that were touched.
 * @throws {MapramError} E_NO_SPACE
 */
export async function requireSpace(
  { image, file, machine, how, job }: Target,
  { blocks, memory }: SourceMemory,
): Promise<number> {
  const extents = await job.answer(memory.scan());
  const touched = bytesIn(extents);
  if (file.deviceBytes !== undefined) {
    const needed = layoutImage({ machine, blocks }).tailOffset + DEVICE_STATE_BYTES + RECORD_BYTES;
    if (needed > file.deviceBytes) throw noSpace(image, needed, `the device has ${file.deviceBytes}`);
    return touched;
  }
  const directory = dirname(image);
  if (spaceBound(blocks, extents) <= (await job.answer(freeBytes(directory)))) return touched;
  const plan = planTransfer({ ...how, blocks, extents });
  const measured = await job.run(measureMemory(memory, plan, how));
  const needed = measured.writtenBytes + metadataBytes(blocks);
  const free = await freeBytesInTime(directory, needed, job);
  if (needed > free) throw noSpace(image, needed, `its file system has ${free} left`);
  return touched;
}

/**
 * Bytes that can be written to the file system of `directory`: as many as are needed, or as many as there are in the end. XFS, for
 * one, frees the blocks of a removed file in its own time, which for a scattered one takes seconds.
 */
async function freeBytesInTime(directory: string, needed: number, job: JobContext): Promise<number> {
  let most = await job.answer(freeBytes(directory));
  let grewAt: number | undefined;
  while (most < needed && (grewAt === undefined || performance.now() - grewAt < STANDSTILL_MS)) {
    await delay(LOOK_AGAIN_MS);
    const free = await job.answer(freeBytes(directory, true));
    // Syncing a busy file system takes its time, and only what follows the first time tells anything.
    if (grewAt === undefined || free > most) grewAt = performance.now();
    most = Math.max(most, free);
  }
  return most;
}

function noSpace(path: string, needed: number, there: string): MapramError {
  return new MapramError('E_NO_SPACE', `The image needs up to ${needed} bytes, and ${there}`, { path });
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
  const joinedHoleBytes = joinedZeroPages() * PAGE_BYTES;
  let sum = 0;
  let end = Number.NEGATIVE_INFINITY;
  for (let index = 0; index < extents.length; index += 3) {
    const offset = extents[index] as number;
    const length = extents[index + 1] as number;
    if (offset - end <= joinedHoleBytes) sum += offset - end;
    sum += length;
    end = offset + length;
  }
  return sum;
}
