import { LOADABLE_STATES } from '../guest/run-state.ts';
import { findRunState, patchRunState } from '../image/index.ts';

/**
 * The device state with the state that the guest was found in; `paused` for one that stood still for a reason that its copy does
 * not share. A device state without section `globalstate`, which machine option store-global-state=off leaves out, stays as it is.
 */
export function recordRunState(deviceState: Uint8Array, found: string): Uint8Array {
  if (findRunState(deviceState) === undefined) return deviceState;
  // A migration that has happened is none of the copy's.
  const isKept = LOADABLE_STATES.has(found) && found !== 'postmigrate';
  return patchRunState(deviceState, isKept ? found : 'paused');
}
