import type { GuestMemory } from '../native.ts';
import type { Transfer } from '../options.ts';

/**
 * How many threads fill the memory. Where a shared file has no pages yet, finding them is most of the work and all processors
 * do it together; private memory is guarded by one lock of QEMU's process, and more threads only wait for it.
 */
export async function threadsToFill(
  memory: GuestMemory,
  dataBytes: number,
  { threads, threadsForFreshMemory }: Transfer,
): Promise<number> {
  let shared = 0;
  let all = 0;
  for (const { kind, length } of memory.regions()) {
    all += length;
    if (kind === 'shared-file') shared += length;
  }
  if (shared < all / 2) return threads;
  let present = 0;
  for (const extents of await memory.scan())
    for (let index = 1; index < extents.length; index += 3) present += extents[index] as number;
  return present < dataBytes / 2 ? threadsForFreshMemory : threads;
}
