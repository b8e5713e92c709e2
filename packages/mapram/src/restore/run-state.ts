import { MapramError } from '../errors.ts';
import type { GuestLink } from '../guest/link.ts';
import { wasStartedPaused } from '../guest/process.ts';
import { isLive } from '../guest/run-state.ts';

/** States that only a reset leads out of (QEMU 10.0.2, runstate_needs_reset in system/runstate.c). */
const DEAD_STATES: ReadonlySet<string> = new Set(['shutdown', 'internal-error']);

/**
 * Whether the guest shall run when it has been restored.
 *
 * @param recorded the state that the image records; QEMU runs a guest that records none.
 * @throws {MapramError} E_USAGE if the guest cannot be brought into the state that is wanted.
 */
export async function decideRunning(
  link: GuestLink,
  recorded: string | undefined,
  then: 'pause' | 'resume' | undefined,
  method: 'fill' | 'qemu',
): Promise<boolean> {
  const state = recorded ?? 'running';
  if (then === 'resume' && DEAD_STATES.has(state)) {
    throw new MapramError('E_USAGE', `The guest was saved in state ${state}, which only a reset leads out of`, {
      field: 'then',
    });
  }
  if (then === 'pause' && isLive(state) && method === 'qemu' && !(await wasStartedPaused(link))) {
    throw new MapramError(
      'E_USAGE',
      'QEMU runs such a guest by itself when it has loaded it: start QEMU with -S, or restore by --method fill',
      { field: 'then' },
    );
  }
  return then === 'resume' || (then === undefined && isLive(state));
}
