import type { GuestMemory } from '../native.ts';
import type { Transfer } from '../options.ts';
import { bytesIn } from '../plan/index.ts';

/**
 * How many threads fill the memory with `dataBytes`. Where most of its pages are not there yet, finding them (and zeroing them, or
 * fetching them from a virtual machine's host) is most of the work, and all processors do it together.
 */
export async function threadsToFill(
  memory: GuestMemory,
  dataBytes: number,
  { threads, threadsForFreshMemory }: Transfer,
): Promise<number> {
  const present = bytesIn(await memory.scan());
  return present < dataBytes / 2 ? threadsForFreshMemory : threads;
}
