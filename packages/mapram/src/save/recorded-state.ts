import { findRunState, patchRunState } from '../image/index.ts';

/**
 * States from which QEMU can take up a guest, and in which it may be found. A QEMU that loads one of the others aborts, or never
 * lets the guest go on: `debug` and `postmigrate`, say, have no way to them from `inmigrate` (QEMU 10.0.2,
 * runstate_transitions_def in system/runstate.c).
 */
const LOADABLE: ReadonlySet<string> = new Set([
  'running',
  'suspended',
  'paused',
  'prelaunch',
  'shutdown',
  'io-error',
  'watchdog',
  'guest-panicked',
  'internal-error',
]);

/**
 * The device state with the state that the guest was found in; `paused` for one that stood still for a reason that its copy does
 * not share. A device state without section `globalstate`, which machine option store-global-state=off leaves out, stays as it is.
 */
export function recordRunState(deviceState: Uint8Array, found: string): Uint8Array {
  if (findRunState(deviceState) === undefined) return deviceState;
  return patchRunState(deviceState, LOADABLE.has(found) ? found : 'paused');
}
