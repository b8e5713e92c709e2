import { Cleanup } from '../test/support/cleanup.ts';

/** Runs `work` and then, however it ended, what it gave to its cleanup. */
export async function withCleanup<T>(work: (cleanup: Cleanup) => Promise<T>): Promise<T> {
  const cleanup = new Cleanup();
  try {
    return await work(cleanup);
  } finally {
    await cleanup.run();
  }
}
