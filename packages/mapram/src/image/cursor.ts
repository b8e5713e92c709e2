import type { MapramError } from '../errors.ts';
import { invalid } from './invalid.ts';
import { bufferOf, decodePrintable } from './text.ts';
import type { ReadRequest } from './types.ts';

/** A step of reading: asks for bytes, is handed them, and returns a `T`. */
export type Reading<T> = Generator<ReadRequest, T, Uint8Array>;

/** Headers are read through windows of this size, so that a record's fields cost one request and not ten. */
const WINDOW_BYTES = 4096;

/** Reads big-endian fields at a moving position of a file, and refuses to go beyond its end. */
export class Cursor {
  /** Offset of the next field. */
  position: number;
  /** Where the stream begins. */
  readonly base: number;
  /** Length of the file. */
  readonly fileLength: number;
  #field = { name: '', offset: 0 };
  #window: Uint8Array = new Uint8Array(0);
  #windowOffset = 0;

  constructor(fileLength: number, base: number) {
    this.fileLength = fileLength;
    this.base = base;
    this.position = base;
  }

  /** The error for an image in which the field that was read last is wrong. */
  wrong(message: string): MapramError {
    return invalid(message, this.#field.offset, this.#field.name);
  }

  /** The next `length` bytes; the array is valid only until the next step. */
  *take(length: number, field: string): Reading<Buffer> {
    const start = this.position;
    this.#field = { name: field, offset: start };
    if (length > this.fileLength - start) {
      throw this.wrong(`The file is truncated: it ends at ${this.fileLength} within ${field}`);
    }
    if (start < this.#windowOffset || start + length > this.#windowOffset + this.#window.length) {
      const wanted = Math.min(Math.max(length, WINDOW_BYTES), this.fileLength - start);
      this.#window = yield* this.readAt(start, wanted);
      this.#windowOffset = start;
    }
    this.position += length;
    return bufferOf(this.#window).subarray(start - this.#windowOffset, this.position - this.#windowOffset);
  }

  /** `length` bytes at `offset`, which the caller has checked to lie within the file; the position stays. */
  *readAt(offset: number, length: number): Reading<Uint8Array> {
    const bytes = yield { offset, length };
    if (bytes.length !== length) {
      throw new RangeError(`asked for ${length} bytes at ${offset}, was handed ${bytes.length}`);
    }
    return bytes;
  }

  /** The next byte. */
  *u8(field: string): Reading<number> {
    return (yield* this.take(1, field)).readUInt8();
  }

  /** The next two bytes. */
  *be16(field: string): Reading<number> {
    return (yield* this.take(2, field)).readUInt16BE();
  }

  /** The next four bytes. */
  *be32(field: string): Reading<number> {
    return (yield* this.take(4, field)).readUInt32BE();
  }

  /** The next eight bytes, which must be below 2^53: no length or offset of a real file is larger. */
  *be64(field: string): Reading<number> {
    const value = (yield* this.take(8, field)).readBigUInt64BE();
    if (value <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(value);
    throw this.wrong(`The value 0x${value.toString(16)} is too large`);
  }

  /** The next `length` bytes, which must be printable text. */
  *text(length: number, field: string): Reading<string> {
    const text = decodePrintable(yield* this.take(length, field));
    if (text === undefined) throw this.wrong(`The ${field} is not printable text`);
    return text;
  }

  /** A printable text behind its length byte, which counts as its beginning. */
  *shortText(field: string): Reading<string> {
    const offset = this.position;
    const length = yield* this.u8(`${field} length`);
    if (length === 0) throw this.wrong(`The ${field} is empty`);
    const text = yield* this.text(length, field);
    this.#field = { name: field, offset };
    return text;
  }
}
