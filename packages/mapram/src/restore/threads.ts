import type { GuestMemory } from '../native.ts';
import type { Transfer } from '../options.ts';

/**
 * How many threads fill the memory with `dataBytes`. Where most of its pages are not there yet, finding them (and zeroing them, or
 * fetching them from a virtual machine's host) is most of the work, and all processors do it together.
 */
export async function threadsToFill(
  memory: GuestMemory,
  dataBytes: number,
  { threads, threadsForFreshMemory }: Transfer,
): Promise<number> {
  let present = 0;
  for (const extents of await memory.scan())
    for (let index = 1; index < extents.length; index += 3) present += extents[index] as number;
  return present < dataBytes / 2 ? threadsForFreshMemory : threads;
}
