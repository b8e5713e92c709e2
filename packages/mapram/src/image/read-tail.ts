import type { Cursor, Reading } from './cursor.ts';
import { isWholeDeviceState } from './device-state.ts';
import { COMMAND_SWITCHOVER_START, MAX_DEVICE_STATE_BYTES, SECTION } from './format.ts';
import { invalid } from './invalid.ts';
import { expectRamId, readEndOfRam } from './read-ram.ts';
import { decodePrintable } from './text.ts';

/** What stands behind the ram section. */
export interface Tail {
  /** The device sections with the EOF byte. */
  deviceState: Uint8Array;
  /** The JSON text describing them, where there is one. */
  vmdesc: Uint8Array | undefined;
}

/** The device state of an ordinary guest fits in the first read. */
const FIRST_READ_BYTES = 1024 * 1024;
/** Bytes from the EOF byte to the description's first character: EOF, section type, length. */
const VMDESC_HEADER_BYTES = 6;

/** Reads what is left of the ram handler's sections, and the switchover command, up to the first device section or EOF. */
export function* readRamSections(cursor: Cursor, ramId: number): Reading<void> {
  for (;;) {
    const offset = cursor.position;
    if (offset >= cursor.fileLength) {
      throw invalid('The stream ends before the device state', offset, 'section type');
    }
    const type = yield* cursor.u8('section type');
    if (type === SECTION.PART || type === SECTION.END) {
      yield* expectRamId(cursor, ramId, 'section id');
      yield* readEndOfRam(cursor, ramId);
    } else if (type === SECTION.COMMAND) {
      yield* readCommand(cursor);
    } else if (type === SECTION.FULL || type === SECTION.EOF) {
      cursor.position = offset;
      return;
    } else if (type === SECTION.START) {
      const message = 'A device has RAM-like state of its own (as vfio has), which is not supported';
      throw invalid(message, offset, 'section type');
    } else {
      throw invalid(`Section type 0x${type.toString(16)} is not possible here`, offset, 'section type');
    }
  }
}

/**
 * Reads the device state and its description, and leaves the cursor behind the stream.
 *
 * Device sections have no length, so their end is found by what follows: EOF behind a section footer, then the description with its
 * length and whole JSON text. Without a description the file must end in a footer and EOF. The first match counts, so that
 * anything may follow the stream.
 */
export function* readDeviceState(cursor: Cursor): Reading<Tail> {
  const start = cursor.position;
  yield* checkFirstSection(cursor);
  const available = cursor.fileLength - start;
  let bytes: Uint8Array = new Uint8Array(0);
  for (let wanted = FIRST_READ_BYTES; ; wanted *= 4) {
    const length = Math.min(wanted, available, MAX_DEVICE_STATE_BYTES);
    bytes = yield* grow(cursor, start, bytes, length);
    const eof = findEndBeforeVmdesc(bytes);
    if (eof !== undefined) {
      const vmdescOffset = eof + VMDESC_HEADER_BYTES;
      const end = vmdescOffset + vmdescLength(bytes, eof);
      cursor.position = start + end;
      return { deviceState: bytes.slice(0, eof + 1), vmdesc: bytes.slice(vmdescOffset, end) };
    }
    if (length === available && isWholeDeviceState(bytes)) {
      cursor.position = start + length;
      return { deviceState: bytes, vmdesc: undefined };
    }
    if (length === available) throw noEnd(cursor.fileLength);
    if (length === MAX_DEVICE_STATE_BYTES) {
      throw invalid('No end of the device state within 1 GiB', start, 'device state');
    }
  }
}

/** Refuses a device state that begins with anything but EOF or a full section with a printable name. */
function* checkFirstSection(cursor: Cursor): Reading<void> {
  const start = cursor.position;
  const type = yield* cursor.u8('section type');
  if (type !== SECTION.EOF) {
    yield* cursor.be32('section id');
    const length = yield* cursor.u8('section name length');
    const name = decodePrintable(yield* cursor.take(length, 'section name'));
    if (name === undefined)
      throw invalid('The first device section has no printable name', start + 6, 'section name');
  }
  cursor.position = start;
}

function* readCommand(cursor: Cursor): Reading<void> {
  const offset = cursor.position;
  const command = yield* cursor.be16('command');
  if (command !== COMMAND_SWITCHOVER_START) {
    throw invalid(`Command ${command} is not possible in an image`, offset, 'command');
  }
  const length = yield* cursor.be16('command length');
  if (length !== 0)
    throw invalid(`Command ${command} has ${length} bytes, not 0`, offset + 2, 'command length');
}

/** `bytes`, which stand at `start`, made `length` bytes long by reading the rest. */
function* grow(cursor: Cursor, start: number, bytes: Uint8Array, length: number): Reading<Uint8Array> {
  const grown = new Uint8Array(length);
  grown.set(bytes);
  grown.set(yield* cursor.readAt(start + bytes.length, length - bytes.length), bytes.length);
  return grown;
}

/** Offset of the EOF byte that a whole description follows, or undefined. */
function findEndBeforeVmdesc(bytes: Uint8Array): number | undefined {
  let brace = bytes.indexOf(0x7b, VMDESC_HEADER_BYTES);
  while (brace >= 0) {
    const eof = brace - VMDESC_HEADER_BYTES;
    if (bytes[eof + 1] === SECTION.VMDESCRIPTION && isWholeDeviceState(bytes.subarray(0, eof + 1))) {
      const end = brace + vmdescLength(bytes, eof);
      if (end <= bytes.length && isVmdesc(bytes.subarray(brace, end))) return eof;
    }
    brace = bytes.indexOf(0x7b, brace + 1);
  }
  return undefined;
}

function vmdescLength(bytes: Uint8Array, eof: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset + eof + 2, 4).getUint32(0);
}

/** Whether `bytes` are a JSON object such as QEMU writes: one that lists devices. */
function isVmdesc(bytes: Uint8Array): boolean {
  try {
    const value: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
    return typeof value === 'object' && value !== null && 'devices' in value && Array.isArray(value.devices);
  } catch {
    return false;
  }
}

function noEnd(fileLength: number): Error {
  const message =
    'The file is truncated or damaged: its device state has no end, neither EOF and a whole description ' +
    'nor, at the end of the file, a section footer and EOF';
  return invalid(message, fileLength, 'device state');
}
