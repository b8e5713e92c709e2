import { Cleanup } from '../test/support/cleanup.ts';

/** Runs `work` and then, however it ended, what it gave to its cleanup. A failure of the work outweighs one of the cleanup. */
export async function withCleanup<T>(work: (cleanup: Cleanup) => Promise<T>): Promise<T> {
  const cleanup = new Cleanup();
  let result: T;
  try {
    result = await work(cleanup);
  } catch (error) {
    await cleanup.run().catch((failure: Error) => process.stderr.write(`bench: ${failure.message}\n`));
    throw error;
  }
  await cleanup.run();
  return result;
}
