import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { Qemu } from '../test/support/qemu.ts';
import { interruption } from './interruption.ts';
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

/**
 * Waits until the processors were idle for three seconds, half a minute at most. A virtual machine's kernel begins to give memory back
 * to its host two seconds after it was freed, and for gigabytes takes seconds of a processor: whoever is measured next shall not share that.
 */
export async function waitForRest(): Promise<void> {
  let rest = 0;
  for (let waited = 0; rest < 3000 && waited < 30_000; waited += STEP) {
    interruption.throwIfAborted();
    const before = idleMilliseconds();
    await sleep(STEP);
    const busy = STEP - (idleMilliseconds() - before) / cpus().length;
    rest = busy < STEP * 0.05 ? rest + STEP : 0;
  }
}

/** Milliseconds between two looks at the processors. */
const STEP = 500;

/** Milliseconds that the processors have been idle, all of them together. */
function idleMilliseconds(): number {
  return cpus().reduce((sum, { times }) => sum + times.idle, 0);
}
