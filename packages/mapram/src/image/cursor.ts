import { invalid } from './invalid.ts';
import type { ReadRequest } from './types.ts';

/** A step of reading: asks for bytes, is handed them, and returns a `T`. */
export type Reading<T> = Generator<ReadRequest, T, Uint8Array>;

/** Headers are read through windows of this size, so that a record's fields cost one request and not ten. */
const WINDOW_BYTES = 4096;

/** Reads big-endian fields at a moving position of a file, and refuses to go beyond its end. */
export class Cursor {
  /** Offset of the next field. */
  position: number;
  /** Length of the file. */
  readonly fileLength: number;
  #window: Uint8Array = new Uint8Array(0);
  #windowOffset = 0;

  constructor(fileLength: number, position: number) {
    this.fileLength = fileLength;
    this.position = position;
  }

  /** The next `length` bytes; the array is valid only until the next step. */
  *take(length: number, field: string): Reading<Uint8Array> {
    const start = this.position;
    if (length > this.fileLength - start) {
      throw invalid(`The file is truncated: it ends at ${this.fileLength} within ${field}`, start, field);
    }
    if (start < this.#windowOffset || start + length > this.#windowOffset + this.#window.length) {
      const wanted = Math.min(Math.max(length, WINDOW_BYTES), this.fileLength - start);
      this.#window = yield* this.readAt(start, wanted);
      this.#windowOffset = start;
    }
    this.position += length;
    return this.#window.subarray(start - this.#windowOffset, this.position - this.#windowOffset);
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
    const bytes = yield* this.take(1, field);
    return bytes[0] as number;
  }

  /** The next two bytes. */
  *be16(field: string): Reading<number> {
    const bytes = yield* this.take(2, field);
    return viewOf(bytes).getUint16(0);
  }

  /** The next four bytes. */
  *be32(field: string): Reading<number> {
    const bytes = yield* this.take(4, field);
    return viewOf(bytes).getUint32(0);
  }

  /** The next eight bytes, which must be below 2^53: no length or offset of a real file is larger. */
  *be64(field: string): Reading<number> {
    const offset = this.position;
    const bytes = yield* this.take(8, field);
    const value = viewOf(bytes).getBigUint64(0);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw invalid(`The value 0x${value.toString(16)} is too large`, offset, field);
    }
    return Number(value);
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
