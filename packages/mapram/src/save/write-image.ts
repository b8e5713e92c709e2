import { encodeRecord } from '../device-record.ts';
import { type BlockSize, encodeImage, type Layout, layoutImage } from '../image/index.ts';
import type { JobContext } from '../job.ts';
import type { GuestMemory, ImageFile } from '../native.ts';
import type { Transfer } from '../options.ts';
import { planTransfer } from '../plan/index.ts';

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

/**
 * Gives the empty file the length that the image will have up to its device state, so that a limit on the length of files shows
 * while the guest still runs. It takes no space. On a device, what it held is overwritten here.
 *
 * @throws {MapramError} E_NO_SPACE
 */
export async function reserveLength(
  file: ImageFile,
  machine: string,
  blocks: readonly BlockSize[],
  job: JobContext,
): Promise<void> {
  await job.run(file.finish([], layoutImage({ machine, blocks }).tailOffset));
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
  const plan = planTransfer({
    blocks: source.blocks.map(({ usedLength }) => ({ length: usedLength })),
    extents: await source.memory.scan(),
    channels: how.channels,
    chunkBytes: how.chunkBytes,
  });
  const areas = layout.blocks.map(({ pagesOffset, usedLength }) => ({ pagesOffset, length: usedLength }));
  job.enter('transfer', plan.dataBytes);
  const { bitmaps } = await job.transfer(file.save(source.memory, areas, plan, how));
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
  const image = encodeImage({ layout, bitmaps, deviceState });
  const { deviceBytes } = file;
  const record = deviceBytes === undefined ? [] : [encodeRecord(image, deviceBytes)];
  await job.run(file.finish([...image.parts, ...record], image.length));
}
