import type { Invocation } from './arguments.ts';
import { SCHEMA_VERSION } from './failure.ts';
import type { Terminal } from './terminal.ts';

/** What a command that did not fail has to say. */
export interface CommandResult {
  /** For people. */
  text: string;
  /** For programs, with `--json`; commands that only print a text have none. */
  report?: object;
  /** The exit status. */
  status: number;
  /** What the command has changed, as a part of a sentence; it stays true where the report cannot be written. */
  done?: string;
}

/**
 * Runs a parsed command line. What a command needs is loaded only when it runs, so that `--help` and usage errors
 * answer at once and also where the native addon does not load.
 *
 * @throws {MapramError} or whatever `signal` was aborted with.
 */
export async function runCommand(
  invocation: Invocation,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<CommandResult> {
  switch (invocation.command) {
    case 'text':
      return { text: invocation.text, status: 0 };
    case 'save': {
      const { runSave } = await import('./transfer.ts');
      const saved = await runSave(invocation.image, invocation.options, terminal, signal);
      return { ...succeeded(saved), done: `the guest was saved to ${invocation.image}` };
    }
    case 'restore': {
      const { runRestore } = await import('./transfer.ts');
      const restored = await runRestore(invocation.image, invocation.options, terminal, signal);
      return { ...succeeded(restored), done: `the guest was restored from ${invocation.image}` };
    }
    case 'inspect': {
      const [{ inspect }, { describeInspection }] = await Promise.all([
        import('../inspect.ts'),
        import('./inspection.ts'),
      ]);
      const { image, options } = invocation;
      const report = await unlessAborted(() => inspect(image, { offset: options.offset }), signal);
      return succeeded({ report, text: describeInspection(report) });
    }
    case 'doctor': {
      const [{ doctor }, { diagnosis }] = await Promise.all([
        import('../doctor.ts'),
        import('./diagnosis.ts'),
      ]);
      return diagnosis(await unlessAborted(() => doctor({ ...invocation.options, signal }), signal));
    }
  }
}

function succeeded({ report, text }: { report: object; text: string }): CommandResult {
  return { text, report: { schemaVersion: SCHEMA_VERSION, ok: true, ...report }, status: 0 };
}

/** For commands that change nothing, and so have nothing to drain: the signal ends them at once. */
async function unlessAborted<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
  // It may have come while the command's modules were loaded.
  signal.throwIfAborted();
  const aborted = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
  return Promise.race([work(), aborted]);
}
