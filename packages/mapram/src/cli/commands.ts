import { within } from '../within.ts';
import type { Invocation } from './arguments.ts';
import type { CommandResult } from './outcome.ts';
import type { Terminal } from './terminal.ts';

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
      const saved = await runSave(invocation, terminal, signal);
      return { ...saved, done: `the guest was saved to ${invocation.image}` };
    }
    case 'restore': {
      const { runRestore } = await import('./transfer.ts');
      const restored = await runRestore(invocation, terminal, signal);
      return { ...restored, done: `the guest was restored from ${invocation.image}` };
    }
    // These two change nothing, and so have nothing to drain: the signal ends them at once.
    case 'inspect': {
      const { runInspect } = await import('./inspection.ts');
      return within(runInspect(invocation.image, invocation.options), { signal });
    }
    case 'doctor': {
      const { runDoctor } = await import('./diagnosis.ts');
      return within(runDoctor({ ...invocation.options, signal }), { signal });
    }
  }
}
