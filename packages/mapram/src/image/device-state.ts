import { MapramError } from '../errors.ts';
import { SECTION, STREAM_MAGIC, STREAM_VERSION } from './format.ts';
import { bufferOf, encodeText } from './text.ts';

/** Bytes in a section footer: its marker and the section's id. */
const FOOTER_BYTES = 5;
/** Bytes of `globalstate` that hold the state's name, padded with NUL (QEMU 10.0.2, `system/globalstate.c`). */
const STATE_BYTES = 32;
/** Bytes of its payload behind the size field: the name, two flags about suspension, and 66 unused ones. */
const STATE_PAYLOAD_BYTES = 100;
/** Bytes of a section in front of its name's length: its type and its id. */
const SECTION_START_BYTES = 5;
/** Instance 0, version 1, behind the length and the name of the section. */
const STATE_HEADER: Uint8Array = encodeText('\x0bglobalstate\0\0\0\0\0\0\0\x01');

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
  const refusal = (what: string, offset: number): MapramError =>
    new MapramError('E_QMP', `QEMU wrote ${what}`, { offset, field: 'device state' });
  const head = bufferOf(bytes);
  if (head.length < 9 || head.readUInt32BE() !== STREAM_MAGIC || head.readUInt32BE(4) !== STREAM_VERSION) {
    throw refusal('no device state: the magic or version at its start is wrong', 0);
  }
  const deviceState = bytes.subarray(8);
  if (isWholeDeviceState(deviceState)) return deviceState;
  throw refusal('a device state that does not end in a section footer and EOF', bytes.length);
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
  return [...runStates(deviceState)].at(-1);
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
    const message = 'The device state has no section globalstate to record a run state in';
    throw new MapramError('E_IMAGE_INVALID', message, { field: 'globalstate' });
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
export function endOfFirstRunState(deviceState: Uint8Array): number | undefined {
  const [first] = runStates(deviceState);
  return first && first.offset + 4 + STATE_PAYLOAD_BYTES + FOOTER_BYTES;
}

/** All that look like a `globalstate` section with its footer, ascending. */
function* runStates(deviceState: Uint8Array): Generator<RecordedRunState, void, undefined> {
  const bytes = bufferOf(deviceState);
  let at = bytes.indexOf(STATE_HEADER, SECTION_START_BYTES);
  while (at >= 0) {
    const found = runStateAt(bytes, at);
    if (found !== undefined) yield found;
    at = bytes.indexOf(STATE_HEADER, at + 1);
  }
}

/** The state of the `globalstate` section whose name and versions stand at `at`, if it is one. */
function runStateAt(bytes: Buffer, at: number): RecordedRunState | undefined {
  const start = at - SECTION_START_BYTES;
  const offset = at + STATE_HEADER.length;
  const footer = offset + 4 + STATE_PAYLOAD_BYTES;
  if (bytes[start] !== SECTION.FULL || bytes[footer] !== SECTION.FOOTER) return undefined;
  if (footer + FOOTER_BYTES > bytes.length) return undefined;
  if (bytes.readUInt32BE(footer + 1) !== bytes.readUInt32BE(start + 1)) return undefined;
  const name = bytes.toString('latin1', offset + 4, offset + 4 + STATE_BYTES);
  const [, state] = /^([a-z-]+)\0+$/.exec(name) ?? [];
  // The size counts one NUL.
  return state?.length === bytes.readUInt32BE(offset) - 1 ? { state, offset } : undefined;
}
