import { requireApartFromMemory } from '../apart.ts';
import { following } from '../errors.ts';
import type { Image } from '../image/index.ts';
import { GuestMemory } from '../native.ts';
import type { MemoryBlock, MemoryRestore } from '../options.ts';
import { type MemoryRestoreReport, transferReport } from '../report.ts';
import { mismatch, pairBlocks } from './compare.ts';
import { fillMemory } from './fill.ts';
import { requireEqualReadOnlyMemory } from './read-only.ts';
import type { Reading } from './restoring.ts';

/** Restores an image into memory that the program names. */
export async function restoreIntoMemory(
  settings: MemoryRestore,
  reading: Reading,
): Promise<MemoryRestoreReport> {
  const { opened, how, job } = reading;
  const { machine, blocks, deviceState } = opened.image;
  if (settings.machine !== undefined && settings.machine !== machine) {
    throw mismatch(`it is of a ${machine}, not of a ${settings.machine}`, 'machine');
  }
  await job.answer(requireApartFromMemory(opened.path, settings.memory, 'restored'));
  const named = GuestMemory.ofNamed(matchBlocks(opened.image, settings), true);
  const memory = await job.answer(named, (late) => late.close());
  try {
    await requireEqualReadOnlyMemory(reading, memory, 'fill');
    await fillMemory(reading, memory);
  } catch (error) {
    if (job.writingSince === undefined) throw error;
    job.guestState = 'unusable';
    if (job.signal.aborted && error === job.signal.reason) throw error;
    throw following('E_RESTORE_INCOMPLETE', 'The memory was restored in part only:', error);
  } finally {
    memory.close();
  }
  const now = performance.now();
  const durationMs = now - (job.writingSince ?? now);
  const facts = { ...how, image: opened.path, blocks, durationMs, pauseMs: 0 };
  return { ...transferReport(facts, job), machine, deviceState };
}

/** The program's blocks in the image's order. */
function matchBlocks({ blocks }: Image, { memory }: MemoryRestore): MemoryBlock[] {
  return pairBlocks(blocks, memory).map(([{ name, usedLength }, block]) => {
    if (block.length === usedLength) return block;
    const lengths = `${usedLength} bytes in it, and ${block.length} in memory`;
    throw mismatch(`RAM block ${name} has ${lengths}`, 'length');
  });
}
