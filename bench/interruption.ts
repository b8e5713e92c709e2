const controller = new AbortController();

/** Aborted by SIGINT, SIGTERM or SIGHUP: what runs then ends early, nothing new is begun, and everything is cleaned up as after a failure. */
export const interruption: AbortSignal = controller.signal;

/** Runs the whole of a program, whose exit status is that of `main`; 1 if it failed; 130, 143 or 129 if a signal ended it. */
export async function runToEnd(main: () => Promise<number>): Promise<void> {
  let interrupted: number | undefined;
  for (const [signal, status] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)
    process.on(signal, () => {
      interrupted ??= status;
      controller.abort();
    });
  try {
    const status = await main();
    process.exitCode = interrupted ?? status;
  } catch (error) {
    process.exitCode = interrupted ?? 1;
    if (interrupted !== undefined) return;
    // What is wrong with the host or with the words is said in a sentence; only a fault of the bench itself needs more.
    const { name, message, stack } = error as Error;
    process.stderr.write(`bench: ${name === 'Error' ? message : stack}\n`);
  }
}
