import { dirname } from 'node:path';
import { MapramError } from '../errors.ts';
import { type BlockSize, encodeImage, layoutImage } from '../image/index.ts';
import type { JobContext } from '../job.ts';
import { freeBytes, type GuestMemory, type ImageFile } from '../native.ts';
import type { Transfer } from '../options.ts';
import { planTransfer } from '../plan/index.ts';

/** What goes into an image. */
export interface ImageContent {
  /** Versioned machine type. */
  machine: string;
  /** The RAM blocks, in the order of the memory. */
  blocks: readonly BlockSize[];
  /** The memory behind them. */
  memory: GuestMemory;
  /** The device sections with the EOF byte. */
  deviceState: Uint8Array;
}

/**
 * Fills the image and makes it durable, but leaves it unpublished.
 *
 * @returns the page bitmap of each block.
 */
export async function writeImage(
  file: ImageFile,
  content: ImageContent,
  how: Transfer,
  job: JobContext,
): Promise<Uint8Array[]> {
  const { machine, blocks, memory, deviceState } = content;
  const layout = layoutImage({ machine, blocks });
  const plan = planTransfer({
    blocks: blocks.map(({ usedLength }) => ({ length: usedLength })),
    extents: await memory.scan(),
    channels: how.channels,
    chunkBytes: how.chunkBytes,
  });
  const places = layout.blocks.map(({ pagesOffset, usedLength }) => ({ pagesOffset, length: usedLength }));
  job.enter('transfer', plan.dataBytes);
  const { bitmaps } = await job.transfer(file.save(memory, places, plan.channels, how));
  job.enter('finish');
  const { parts, length } = encodeImage({ layout, bitmaps, deviceState });
  await job.run(file.finish(parts, length));
  return bitmaps;
}

/**
 * Refuses an image that the target's file system has no room for. Memory that was never touched needs none; pages that hold
 * zeros are counted as data here, for only the transfer itself reads them.
 *
 * @throws {MapramError} E_NO_SPACE
 */
export async function requireSpace(path: string, memory: GuestMemory): Promise<void> {
  let needed = 0;
  for (const extents of await memory.scan()) {
    for (let index = 1; index < extents.length; index += 3) needed += extents[index] as number;
  }
  const free = freeBytes(dirname(path));
  if (needed <= free) return;
  throw new MapramError(
    'E_NO_SPACE',
    `The image may need ${needed} bytes, and its file system has ${free} left`,
    { path },
  );
}
