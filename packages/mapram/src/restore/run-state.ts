import { MapramError } from '../errors.ts';
import { isLive, LOADABLE_STATES } from '../guest/run-state.ts';

/** States that only a reset leads out of (QEMU 10.0.2, runstate_needs_reset in system/runstate.c). */
const DEAD_STATES: ReadonlySet<string> = new Set(['shutdown', 'internal-error']);

/** States of a guest that runs, and of one that only stands still. */
const PAUSABLE: ReadonlySet<string> = new Set(['running', 'suspended', 'prelaunch', 'postmigrate']);

/** What the guest is to do when it has been restored. */
export interface RunStatePlan {
  /** Whether it shall run. */
  shallRun: boolean;
  /** Whether the device state is to say `paused`, whatever the image says. */
  recordsPaused: boolean;
  /** The state that the image records, if QEMU cannot take it up. */
  unloadable: string | undefined;
}

/**
 * How to bring the guest into the state that is wanted, decided before anything is written.
 *
 * @param recorded the state that the image records; QEMU runs a guest that records none.
 * @throws {MapramError} E_USAGE if that cannot be done.
 */
export function planRunState(
  recorded: string | undefined,
  then: 'pause' | 'resume' | undefined,
): RunStatePlan {
  const state = recorded ?? 'running';
  if (then === 'resume' && DEAD_STATES.has(state)) {
    const reason = `The guest was saved in state ${state}, which only a reset leads out of`;
    throw new MapramError('E_USAGE', reason, { field: 'then' });
  }
  const isLoadable = LOADABLE_STATES.has(state);
  return {
    shallRun: then === 'resume' || (then === undefined && isLive(state)),
    recordsPaused: !isLoadable || (then === 'pause' && recorded !== undefined && PAUSABLE.has(recorded)),
    unloadable: isLoadable ? undefined : state,
  };
}
