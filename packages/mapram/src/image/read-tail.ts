import type { Cursor, Reading } from './cursor.ts';
import { endOfFirstRunState, isWholeDeviceState } from './device-state.ts';
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
const OPENING_BRACE = 0x7b;
const CLOSING_BRACE = 0x7d;

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
 * length and whole JSON text. The guest may have put just that into a device's memory, so an end at which the file ends too comes
 * before all others, and then the first one behind section `globalstate`. Without a description the file must end in a footer
 * and EOF.
 *
 * On a device the end says nothing, and what follows the image may be of an earlier one. There an end counts only if it is the
 * only one: what a guest planted makes two.
 */
export function* readDeviceState(cursor: Cursor, isDevice: boolean): Reading<Tail> {
  const start = cursor.position;
  yield* checkFirstSection(cursor);
  const tail = isDevice
    ? yield* readToOnlyEnd(cursor, start)
    : ((yield* readToEndOfFile(cursor, start)) ?? (yield* readToFirstEnd(cursor, start)));
  cursor.position = start + tail.deviceState.length;
  if (tail.vmdesc !== undefined) cursor.position += VMDESC_HEADER_BYTES - 1 + tail.vmdesc.length;
  return tail;
}

/** The device state whose description ends where the file does, if there is one. */
function* readToEndOfFile(cursor: Cursor, start: number): Reading<Tail | undefined> {
  const length = cursor.fileLength - start;
  const last = yield* cursor.readAt(cursor.fileLength - 1, 1);
  if (last[0] !== CLOSING_BRACE || length > MAX_DEVICE_STATE_BYTES) return undefined;
  const bytes = yield* cursor.readAt(start, length);
  // JSON holds no NUL, and EOF is one: the last NUL is EOF, or in the description's length behind it.
  const lastNul = bytes.lastIndexOf(SECTION.EOF);
  for (let eof = lastNul; eof >= 0 && eof > lastNul - VMDESC_HEADER_BYTES; eof -= 1) {
    if (endOfVmdesc(bytes, eof) === length) return tailAt(bytes, eof);
  }
  return undefined;
}

/** The device state up to its first end, or up to the end of the file. */
function* readToFirstEnd(cursor: Cursor, start: number): Reading<Tail> {
  const available = cursor.fileLength - start;
  let bytes: Uint8Array = new Uint8Array(0);
  for (let wanted = FIRST_READ_BYTES; ; wanted *= 4) {
    const length = Math.min(wanted, available, MAX_DEVICE_STATE_BYTES);
    bytes = yield* grow(cursor, start, bytes, length);
    const { proper, other } = firstEnds(bytes);
    if (proper !== undefined) return tailAt(bytes, proper);
    if (length === available && isWholeDeviceState(bytes)) return { deviceState: bytes, vmdesc: undefined };
    const isAll = length === available || length === MAX_DEVICE_STATE_BYTES;
    if (isAll && other !== undefined) return tailAt(bytes, other);
    if (length === available) throw noEnd(cursor.fileLength);
    if (isAll) throw invalid('No end of the device state within 1 GiB', start, 'device state');
  }
}

/** The device state up to its only end. */
function* readToOnlyEnd(cursor: Cursor, start: number): Reading<Tail> {
  const bytes = yield* cursor.readAt(start, Math.min(cursor.fileLength - start, MAX_DEVICE_STATE_BYTES));
  const [eof, another] = findEnds(bytes);
  if (eof === undefined) {
    const message =
      'The image on this device has no end that can be found: its device state is not followed by EOF and a whole ' +
      'description (VMDESC), and there is no record of its length in the last page of the device';
    throw invalid(message, start, 'device state');
  }
  if (another !== undefined) {
    const message =
      'The device holds more than one possible end of the image, perhaps that of an earlier one: ' +
      'discard it (blkdiscard) before the image is copied there, or let mapram save to it';
    throw invalid(message, start, 'device state');
  }
  return tailAt(bytes, eof);
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

/** Offsets of EOF bytes that a whole description follows. */
interface Ends {
  /** The first one behind section `globalstate`, or behind no section at all. */
  proper: number | undefined;
  /** The first one, where there is no proper one. */
  other: number | undefined;
}

function firstEnds(bytes: Uint8Array): Ends {
  const stateEnd = endOfFirstRunState(bytes) ?? Number.POSITIVE_INFINITY;
  let other: number | undefined;
  for (const eof of findEnds(bytes)) {
    if (eof === 0 || eof >= stateEnd) return { proper: eof, other: undefined };
    other ??= eof;
  }
  return { proper: undefined, other };
}

/** Offsets of all EOF bytes that a whole description follows. */
function* findEnds(bytes: Uint8Array): Generator<number, void, undefined> {
  for (
    let brace = bytes.indexOf(OPENING_BRACE, VMDESC_HEADER_BYTES);
    brace >= 0;
    brace = bytes.indexOf(OPENING_BRACE, brace + 1)
  ) {
    const eof = brace - VMDESC_HEADER_BYTES;
    if (endOfVmdesc(bytes, eof) !== undefined) yield eof;
  }
}

/** Where the description behind the EOF byte at `eof` ends; undefined if device sections do not end there, or no whole one follows. */
function endOfVmdesc(bytes: Uint8Array, eof: number): number | undefined {
  const start = eof + VMDESC_HEADER_BYTES;
  if (start >= bytes.length || bytes[eof + 1] !== SECTION.VMDESCRIPTION || bytes[start] !== OPENING_BRACE) {
    return undefined;
  }
  if (!isWholeDeviceState(bytes.subarray(0, eof + 1))) return undefined;
  const end = start + new DataView(bytes.buffer, bytes.byteOffset + eof + 2, 4).getUint32(0);
  if (end > bytes.length) return undefined;
  // A guest may plant many false ends, each with a long text: a NUL shows soon that a text is none, without reading it whole.
  const nul = bytes.indexOf(0, start);
  const isText = nul < 0 || nul >= end;
  return isText && isVmdesc(bytes.subarray(start, end)) ? end : undefined;
}

/** The device state up to the EOF byte at `eof` and the description that follows it. */
function tailAt(bytes: Uint8Array, eof: number): Tail {
  const vmdescOffset = eof + VMDESC_HEADER_BYTES;
  const end = endOfVmdesc(bytes, eof);
  // Copies, for these are views of what was read.
  const deviceState = new Uint8Array(bytes.subarray(0, eof + 1));
  return { deviceState, vmdesc: new Uint8Array(bytes.subarray(vmdescOffset, end)) };
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
