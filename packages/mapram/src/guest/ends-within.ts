import { setTimeout as delay } from 'node:timers/promises';
import type { ProcessHandle } from '../native.ts';

/** Waits for a process's end, at most that long, and says whether it has ended. Takes no thread, for there may be none left. */
export async function endsWithin(process: ProcessHandle, timeoutMs: number): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  while (!process.hasEnded()) {
    if (performance.now() >= deadline) return false;
    await delay(10);
  }
  return true;
}
