import { dirname } from 'node:path';
import { MapramError } from '../errors.ts';
import { type BlockSize, encodeImage, type Layout, layoutImage } from '../image/index.ts';
import type { JobContext } from '../job.ts';
import { freeBytes, type GuestMemory, type ImageFile, measureMemory } from '../native.ts';
import type { Transfer } from '../options.ts';
import { planTransfer, type TransferPlan } from '../plan/index.ts';

/** Pages that are in the image, and what is needed to make an image of them. */
export interface WrittenPages {
  /** Where everything goes. */
  layout: Layout;
  /** The page bitmap of each block. */
  bitmaps: Uint8Array[];
}

/** Memory that is to be saved. */
export interface SourceMemory {
  /** The RAM blocks, in the order of the memory. */
  blocks: readonly BlockSize[];
  /** The memory behind them. */
  memory: GuestMemory;
}

/** Writes the memory's pages to their places in the image. When it resolves, the memory is not needed any more. */
export async function writePages(
  file: ImageFile,
  machine: string,
  source: SourceMemory,
  how: Transfer,
  job: JobContext,
): Promise<WrittenPages> {
  const layout = layoutImage({ machine, blocks: source.blocks });
  const plan = await planSave(source, how);
  const places = layout.blocks.map(({ pagesOffset, usedLength }) => ({ pagesOffset, length: usedLength }));
  job.enter('transfer', plan.dataBytes);
  const { bitmaps } = await job.transfer(file.save(source.memory, places, plan.channels, how));
  return { layout, bitmaps };
}

/** Writes everything around the pages and makes the image durable, but leaves it unpublished. */
export async function finishImage(
  file: ImageFile,
  { layout, bitmaps }: WrittenPages,
  deviceState: Uint8Array,
  job: JobContext,
): Promise<void> {
  job.enter('finish');
  const { parts, length } = encodeImage({ layout, bitmaps, deviceState });
  await job.run(file.finish(parts, length));
}

/**
 * Refuses an image that the target's file system has no room for. Memory that was never touched needs none. Touched pages are
 * read only if they could be too many, for they may hold zeros; a running guest may still come to need more.
 *
 * @throws {MapramError} E_NO_SPACE
 */
export async function requireSpace(
  path: string,
  source: SourceMemory,
  how: Transfer,
  job: JobContext,
): Promise<void> {
  const free = freeBytes(dirname(path));
  const plan = await planSave(source, how);
  if (plan.dataBytes <= free) return;
  const { dataBytes } = await job.run(measureMemory(source.memory, plan.channels, how));
  if (dataBytes <= free) return;
  const message = `The image needs ${dataBytes} bytes, and its file system has ${free} left`;
  throw new MapramError('E_NO_SPACE', message, { path });
}

async function planSave({ blocks, memory }: SourceMemory, how: Transfer): Promise<TransferPlan> {
  return planTransfer({
    blocks: blocks.map(({ usedLength }) => ({ length: usedLength })),
    extents: await memory.scan(),
    channels: how.channels,
    chunkBytes: how.chunkBytes,
  });
}
