import type { Cursor, Reading } from './cursor.ts';
import { endOfFirstRunState, isWholeDeviceState } from './device-state.ts';
import { COMMAND_SWITCHOVER_START, MAX_DEVICE_STATE_BYTES, SECTION } from './format.ts';
import { invalid } from './invalid.ts';
import { expectRamId, readEndOfRam } from './read-ram.ts';
import { bufferOf, decodePrintable } from './text.ts';

/** What stands behind the ram section. */
export interface Tail {
  /** The device sections with the EOF byte. */
  deviceState: Uint8Array;
  /** The JSON text describing them, where there is one. */
  vmdesc: Uint8Array | undefined;
}

/** One whose end its description tells. */
type DescribedTail = Tail & { vmdesc: Uint8Array };

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
    if (type === SECTION.FULL || type === SECTION.EOF) {
      cursor.position = offset;
      return;
    }
    if (type === SECTION.START) {
      throw cursor.wrong('A device has RAM-like state of its own (as vfio has), which is not supported');
    }
    if (type === SECTION.COMMAND) {
      yield* readCommand(cursor);
    } else if (type === SECTION.PART || type === SECTION.END) {
      yield* expectRamId(cursor, ramId, 'section id');
      yield* readEndOfRam(cursor, ramId);
    } else {
      throw cursor.wrong(`Section type 0x${type.toString(16)} is not possible here`);
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
  const { deviceState, vmdesc } = isDevice
    ? yield* readToOnlyEnd(cursor, start)
    : ((yield* readToEndOfFile(cursor, start)) ?? (yield* readToFirstEnd(cursor, start)));
  cursor.position = start + deviceState.length;
  if (vmdesc !== undefined) cursor.position += VMDESC_HEADER_BYTES - 1 + vmdesc.length;
  // Copies, for these are views of what was read.
  return { deviceState: new Uint8Array(deviceState), vmdesc: vmdesc && new Uint8Array(vmdesc) };
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
    const tail = tailAt(bytes, eof);
    if (tail !== undefined && eof + VMDESC_HEADER_BYTES + tail.vmdesc.length === length) return tail;
  }
  return undefined;
}

/** The device state up to its first end behind section `globalstate`, else to the end of the file, else to its first end. */
function* readToFirstEnd(cursor: Cursor, start: number): Reading<Tail> {
  const most = Math.min(cursor.fileLength - start, MAX_DEVICE_STATE_BYTES);
  const isToEndOfFile = start + most === cursor.fileLength;
  for (let wanted = FIRST_READ_BYTES; ; wanted *= 4) {
    const bytes = yield* cursor.readAt(start, Math.min(wanted, most));
    const stateEnd = endOfFirstRunState(bytes) ?? Number.POSITIVE_INFINITY;
    let first: Tail | undefined;
    for (const tail of findTails(bytes)) {
      // A device state of EOF alone has no section.
      if (tail.deviceState.length === 1 || tail.deviceState.length > stateEnd) return tail;
      first ??= tail;
    }
    if (bytes.length < most) continue;
    if (isToEndOfFile && isWholeDeviceState(bytes)) return { deviceState: bytes, vmdesc: undefined };
    if (first !== undefined) return first;
    if (!isToEndOfFile) throw invalid('No end of the device state within 1 GiB', start, 'device state');
    const message =
      'The file is truncated or damaged: its device state has no end, neither EOF and a whole description ' +
      'nor, at the end of the file, a section footer and EOF';
    throw invalid(message, cursor.fileLength, 'device state');
  }
}

/** The device state up to its only end. */
function* readToOnlyEnd(cursor: Cursor, start: number): Reading<Tail> {
  const bytes = yield* cursor.readAt(start, Math.min(cursor.fileLength - start, MAX_DEVICE_STATE_BYTES));
  const [tail, another] = findTails(bytes);
  if (tail === undefined) {
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
  return tail;
}

/** Refuses a device state that begins with anything but EOF or a full section with a printable name. */
function* checkFirstSection(cursor: Cursor): Reading<void> {
  const start = cursor.position;
  if ((yield* cursor.u8('section type')) !== SECTION.EOF) {
    yield* cursor.be32('section id');
    const length = yield* cursor.u8('section name length');
    const name = decodePrintable(yield* cursor.take(length, 'section name'));
    if (name === undefined) throw cursor.wrong('The first device section has no printable name');
  }
  cursor.position = start;
}

function* readCommand(cursor: Cursor): Reading<void> {
  const command = yield* cursor.be16('command');
  if (command !== COMMAND_SWITCHOVER_START) {
    throw cursor.wrong(`Command ${command} is not possible in an image`);
  }
  const length = yield* cursor.be16('command length');
  if (length !== 0) throw cursor.wrong(`Command ${command} has ${length} bytes, not 0`);
}

/** Every device state with a whole description that `bytes` may hold, as views. */
function* findTails(bytes: Uint8Array): Generator<DescribedTail, void, undefined> {
  let brace = bytes.indexOf(OPENING_BRACE, VMDESC_HEADER_BYTES);
  while (brace >= 0) {
    const tail = tailAt(bytes, brace - VMDESC_HEADER_BYTES);
    if (tail !== undefined) yield tail;
    brace = bytes.indexOf(OPENING_BRACE, brace + 1);
  }
}

/** What ends at the EOF byte at `eof`, as views; undefined if device sections do not end there, or no whole description follows. */
function tailAt(bytes: Uint8Array, eof: number): DescribedTail | undefined {
  const start = eof + VMDESC_HEADER_BYTES;
  if (start >= bytes.length || bytes[eof + 1] !== SECTION.VMDESCRIPTION || bytes[start] !== OPENING_BRACE) {
    return undefined;
  }
  const deviceState = bytes.subarray(0, eof + 1);
  const end = start + bufferOf(bytes).readUInt32BE(eof + 2);
  if (!isWholeDeviceState(deviceState) || end > bytes.length) return undefined;
  // A guest may plant many false ends, each with a long text: a NUL shows soon that a text is none, without reading it whole.
  const nul = bytes.indexOf(0, start);
  if (nul >= 0 && nul < end) return undefined;
  const vmdesc = bytes.subarray(start, end);
  return isVmdesc(vmdesc) ? { deviceState, vmdesc } : undefined;
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
