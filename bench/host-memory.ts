import { Qemu } from '../test/support/qemu.ts';
import { withCleanup } from './with-cleanup.ts';
import type { Workload } from './workload.ts';

/**
 * Uses `bytes` of memory, rounded up to whole MiB, and frees it again. On a virtual machine, memory that was free for a second has
 * gone back to the host, and fetching it costs many times what is measured: whoever fills fresh memory next shall find it here.
 *
 * A QEMU that ends frees its huge pages at once; the small pages of a file take long to become free.
 */
export function warmHostMemory(bytes: number): Promise<void> {
  const mebibytes = Math.ceil(bytes / 2 ** 20);
  const memory = ['-object', `memory-backend-ram,id=ram0,size=${mebibytes}M,prealloc=on,prealloc-threads=2`];
  return withCleanup(async (cleanup) => {
    await Qemu.start({ machine: 'q35', mebibytes, memory, paused: true }, cleanup);
  });
}

/** The same for what a restore is going to fill: twice as much, for some of it is back with the host before the restore gets there. */
export function warmMemoryToFill({ dataBytes }: Workload): Promise<void> {
  return warmHostMemory(2 * dataBytes);
}
