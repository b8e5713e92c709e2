import { following } from '../errors.ts';
import type { OpenImage } from '../image-file.ts';
import type { JobContext } from '../job.ts';
import { GuestMemory } from '../native.ts';
import type { MemoryRestore, Transfer } from '../options.ts';
import { type MemoryRestoreReport, transferReport } from '../report.ts';
import { mismatch, requireSameNames } from './compare.ts';
import { fillMemory } from './fill.ts';
import { requireEqualReadOnlyMemory } from './read-only.ts';

/** Restores an image into memory that the program names. */
export async function restoreIntoMemory(
  opened: OpenImage,
  settings: MemoryRestore,
  how: Transfer,
  job: JobContext,
): Promise<MemoryRestoreReport> {
  const { machine, blocks, deviceState } = opened.image;
  if (settings.machine !== undefined && settings.machine !== machine) {
    throw mismatch(`it is of a ${machine}, not of a ${settings.machine}`, 'machine');
  }
  const memory = await GuestMemory.ofNamed(matchBlocks(opened, settings), true);
  try {
    await requireEqualReadOnlyMemory(opened, memory, 'fill', how, job);
    await fillMemory(opened, memory, how, job);
  } catch (error) {
    const isCancel = job.signal.aborted && error === job.signal.reason;
    if (job.writingSince === undefined || isCancel) throw error;
    throw following('E_RESTORE_INCOMPLETE', 'The memory was restored in part only:', error);
  } finally {
    memory.close();
  }
  const now = performance.now();
  const durationMs = now - (job.writingSince ?? now);
  const bitmaps = blocks.map(({ bitmap }) => bitmap);
  const facts = { ...how, image: opened.path, blocks, bitmaps, durationMs, pauseMs: 0 };
  return { ...transferReport(facts, job), machine, deviceState };
}

/** The program's blocks in the image's order. */
function matchBlocks({ image }: OpenImage, { memory }: MemoryRestore): MemoryRestore['memory'] {
  const own = new Map(memory.map((block) => [block.name, block]));
  requireSameNames(image.blocks, own);
  return image.blocks.map(({ name, usedLength }) => {
    const block = own.get(name) as MemoryRestore['memory'][number];
    if (block.length === usedLength) return block;
    throw mismatch(
      `RAM block ${name} has ${usedLength} bytes in it, and ${block.length} in memory`,
      'length',
    );
  });
}
