const controller = new AbortController();

/** Aborted by SIGINT, SIGTERM or SIGHUP: what runs then ends early, nothing new is begun, and everything is cleaned up as after a failure. */
export const interruption: AbortSignal = controller.signal;

/** Runs the whole of a program, whose exit status is that of `main`; 130, 143 or 129 if a signal ended it. */
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
    if (interrupted === undefined) throw error;
    process.exitCode = interrupted;
  }
}
