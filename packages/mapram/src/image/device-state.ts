import { MapramError } from '../errors.ts';
import { SECTION, STREAM_MAGIC, STREAM_VERSION } from './format.ts';
import { encodeText } from './text.ts';

/** Bytes in a section footer: its marker and the section's id. */
const FOOTER_BYTES = 5;
/** Bytes of `globalstate` that hold the state's name, padded with NUL (QEMU 10.0.2, `system/globalstate.c`). */
const STATE_BYTES = 32;
/** Bytes of its payload behind the size field: the name, two flags about suspension, and 66 unused ones. */
const STATE_PAYLOAD_BYTES = 100;
/** Instance 0, version 1, behind the length and the name of the section. */
const STATE_HEADER: Uint8Array = Uint8Array.from([
  ...[11, ...encodeText('globalstate')],
  ...[0, 0, 0, 0],
  ...[0, 0, 0, 1],
]);

/** The state recorded in the device state, and where the section's size field begins in it. */
export interface RecordedRunState {
  /** A name of QEMU's RunState enumeration, such as `running` or `paused`. */
  state: string;
  /** Offset of the state's size field from the start of the device state. */
  offset: number;
}

/**
 * The device sections out of what QMP `xen-save-devices-state` writes: magic, version, sections, EOF.
 *
 * @returns the sections with the EOF byte, as they stand in an image; a view of `bytes`.
 * @throws MapramError E_QMP if QEMU wrote something else.
 */
export function splitDevicesState(bytes: Uint8Array): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 9 || view.getUint32(0) !== STREAM_MAGIC || view.getUint32(4) !== STREAM_VERSION) {
    throw new MapramError('E_QMP', 'QEMU wrote no device state: the magic or version at its start is wrong', {
      offset: 0,
      field: 'device state',
    });
  }
  const deviceState = bytes.subarray(8);
  if (!isWholeDeviceState(deviceState)) {
    throw new MapramError(
      'E_QMP',
      'QEMU wrote a device state that does not end in a section footer and EOF',
      {
        offset: bytes.length,
        field: 'device state',
      },
    );
  }
  return deviceState;
}

/** Whether `bytes` begin with a full section and end in a section footer and EOF, or are EOF alone. */
export function isWholeDeviceState(bytes: Uint8Array): boolean {
  const eof = bytes.length - 1;
  if (bytes[eof] !== SECTION.EOF) return false;
  return (
    eof === 0 ||
    (bytes[0] === SECTION.FULL && eof > FOOTER_BYTES && bytes[eof - FOOTER_BYTES] === SECTION.FOOTER)
  );
}

/**
 * The guest's state at the time of saving, from section `globalstate`, or undefined if there is no such section.
 *
 * Sections have no length, so the section is found by its header; it counts only where its payload and its footer fit, and the
 * last match wins because QEMU writes it last while a device's memory before it may hold anything.
 */
export function findRunState(deviceState: Uint8Array): RecordedRunState | undefined {
  let from = deviceState.lastIndexOf(SECTION.FULL);
  while (from >= 0) {
    const found = runStateAt(deviceState, from);
    if (found !== undefined) return found;
    from = from === 0 ? -1 : deviceState.lastIndexOf(SECTION.FULL, from - 1);
  }
  return undefined;
}

/** Where `globalstate` says, from its size field on, whether it knows of a suspension, and whether the guest was suspended. */
const HAS_VM_WAS_SUSPENDED = 36;
const VM_WAS_SUSPENDED = 37;

/**
 * A copy of `deviceState` that records another state. A guest that was suspended is recorded as one that slept when it was
 * stopped, or `cont` would run it before anything wakes it.
 *
 * @param state a name of QEMU's RunState enumeration, at most 31 bytes.
 * @throws MapramError E_IMAGE_INVALID if the device state has no section `globalstate`.
 */
export function patchRunState(deviceState: Uint8Array, state: string): Uint8Array {
  if (!/^[a-z][a-z-]{0,30}$/.test(state)) throw new RangeError(`"${state}" is no run state`);
  const found = findRunState(deviceState);
  if (found === undefined) {
    throw new MapramError(
      'E_IMAGE_INVALID',
      'The device state has no section globalstate to record a run state in',
      {
        field: 'globalstate',
      },
    );
  }
  // A Buffer's slice would be a view.
  const patched = new Uint8Array(deviceState);
  new DataView(patched.buffer).setUint32(found.offset, state.length + 1);
  patched.fill(0, found.offset + 4, found.offset + 4 + STATE_BYTES);
  patched.set(encodeText(state), found.offset + 4);
  if (found.state === 'suspended' && state !== 'suspended') {
    patched[found.offset + HAS_VM_WAS_SUSPENDED] = 1;
    patched[found.offset + VM_WAS_SUSPENDED] = 1;
  }
  return patched;
}

/** Where the first `globalstate` section with its footer ends, or undefined if there is none. */
export function endOfFirstRunState(bytes: Uint8Array): number | undefined {
  for (let from = bytes.indexOf(SECTION.FULL); from >= 0; from = bytes.indexOf(SECTION.FULL, from + 1)) {
    const found = runStateAt(bytes, from);
    if (found !== undefined) return found.offset + 4 + STATE_PAYLOAD_BYTES + FOOTER_BYTES;
  }
  return undefined;
}

/** The state of the `globalstate` section that begins at `start`, if one does. */
function runStateAt(bytes: Uint8Array, start: number): RecordedRunState | undefined {
  const offset = start + 5 + STATE_HEADER.length;
  const footer = offset + 4 + STATE_PAYLOAD_BYTES;
  if (footer + FOOTER_BYTES > bytes.length || bytes[footer] !== SECTION.FOOTER) return undefined;
  if (!STATE_HEADER.every((byte, index) => bytes[start + 5 + index] === byte)) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(footer + 1) !== view.getUint32(start + 1)) return undefined;
  const size = view.getUint32(offset);
  if (size < 2 || size > STATE_BYTES) return undefined;
  const state = String.fromCharCode(...bytes.subarray(offset + 4, offset + 4 + size - 1));
  const padding = bytes.subarray(offset + 4 + size - 1, offset + 4 + STATE_BYTES);
  const valid = /^[a-z-]+$/.test(state) && padding.every((byte) => byte === 0);
  return valid ? { state, offset } : undefined;
}
