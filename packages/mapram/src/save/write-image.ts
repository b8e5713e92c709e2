import { encodeRecord } from '../device-record.ts';
import { type BlockSize, encodeImage, type Layout, layoutImage } from '../image/index.ts';
import type { JobContext } from '../job.ts';
import type { GuestMemory, ImageFile } from '../native.ts';
import type { Transfer } from '../options.ts';
import { planTransfer } from '../plan/index.ts';

/** An image that is being made. */
export interface Target {
  /** The path as the caller gave it. */
  image: string;
  /** What was created there. */
  file: ImageFile;
  /** The machine type that the image will name. */
  machine: string;
  /** How pages are moved. */
  how: Transfer;
  job: JobContext;
}

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
  { file, machine, how, job }: Target,
  { blocks, memory }: SourceMemory,
): Promise<WrittenPages> {
  const layout = layoutImage({ machine, blocks });
  const plan = planTransfer({ ...how, blocks, extents: await job.answer(memory.scan()) });
  const areas = layout.blocks.map(({ pagesOffset, usedLength }) => ({ pagesOffset, length: usedLength }));
  job.enter('transfer', plan.dataBytes);
  const { bitmaps } = await job.transfer(file.save(memory, areas, plan, how));
  return { layout, bitmaps };
}

/** Writes everything around the pages and makes the image durable, but leaves it unpublished. */
export async function finishImage(
  { file, job }: Target,
  { layout, bitmaps }: WrittenPages,
  deviceState: Uint8Array,
): Promise<void> {
  job.enter('finish');
  const image = encodeImage({ layout, bitmaps, deviceState });
  const { deviceBytes } = file;
  const record = deviceBytes === undefined ? [] : [encodeRecord(image, deviceBytes)];
  await job.run(file.finish([...image.parts, ...record], image.length));
}
