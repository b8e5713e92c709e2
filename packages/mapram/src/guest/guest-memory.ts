import { GuestMemory } from '../native.ts';
import type { GuestLink } from './link.ts';
import { confirmGuestProcess } from './process.ts';
import type { RamBlock } from './ram-blocks.ts';

/** The job that guest memory is opened for. */
interface OpeningJob {
  /** Waits for what a file system that hangs may keep; what comes late goes to `undo`. */
  answer<T>(question: Promise<T>, undo: (late: T) => void): Promise<T>;
}

/**
 * Opens the RAM blocks of the guest that runs in process `pid`; the caller closes them.
 *
 * @throws {MapramError} E_PERMISSION, E_GUEST_GONE, or E_GUEST_MISMATCH if the process is not the guest any more.
 */
export async function openGuestMemory(
  link: GuestLink,
  pid: number,
  blocks: readonly RamBlock[],
  access: { writable: boolean },
  job: OpeningJob,
): Promise<GuestMemory> {
  const addresses = blocks.map(({ name, address, usedLength }) => ({ name, address, length: usedLength }));
  const opening = GuestMemory.ofProcess(pid, addresses, access.writable);
  const memory = await job.answer(opening, (late) => late.close());
  try {
    await confirmGuestProcess(link, pid);
  } catch (error) {
    memory.close();
    throw error;
  }
  return memory;
}
