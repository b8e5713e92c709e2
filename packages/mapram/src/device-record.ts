import { createHash } from 'node:crypto';
import { type EncodedImage, type ImagePart, MAX_DEVICE_STATE_BYTES } from './image/index.ts';

// On a block device an image does not end where the file ends. Its length stands in a record in the device's last page, bound to
// the image by a hash, so that the record of an earlier image is not taken for this one's (docs/format.md).

/** Bytes of the record, at the device's end. */
export const RECORD_BYTES = 4096;

const MAGIC: Uint8Array = new TextEncoder().encode('MAPRAMED');
const VERSION = 1;
/** Bytes at the image's start that the hash covers. */
const HEAD_BYTES = 4096;
const FIELDS_BYTES = 48;
const HASH_BYTES = 32;

/** What a record says. */
export interface DeviceRecord {
  /** Bytes from the device's start to the end of the image's stream. */
  end: number;
  /** Bytes before that end which the hash covers: the stream behind the last page. */
  tailBytes: number;
  /** The record's own fields, which the hash covers too. */
  fields: Uint8Array;
  /** The hash. */
  hash: Uint8Array;
}

/** The record for a whole image, and where it goes on a device of `deviceBytes`. */
export function encodeRecord({ parts, length }: EncodedImage, deviceBytes: number): ImagePart {
  const tail = (parts.at(-1) as ImagePart).bytes;
  const head = new Uint8Array(HEAD_BYTES);
  for (const { offset, bytes } of parts) {
    if (offset < HEAD_BYTES) head.set(bytes.subarray(0, HEAD_BYTES - offset), offset);
  }
  const record = new Uint8Array(RECORD_BYTES);
  const view = new DataView(record.buffer);
  record.set(MAGIC, 0);
  view.setUint32(8, VERSION);
  view.setBigUint64(16, BigInt(length));
  // Nothing of ours stands behind the stream yet.
  view.setBigUint64(24, BigInt(length));
  view.setBigUint64(32, BigInt(tail.length));
  record.set(hashOf(record.subarray(0, FIELDS_BYTES), head, tail), FIELDS_BYTES);
  record.set(MAGIC, RECORD_BYTES - MAGIC.length);
  return { offset: deviceBytes - RECORD_BYTES, bytes: record };
}

/** What the last page of a device of `deviceBytes` says, or undefined if it holds no record. */
export function decodeRecord(record: Uint8Array, deviceBytes: number): DeviceRecord | undefined {
  const view = new DataView(record.buffer, record.byteOffset, record.byteLength);
  const hasMagic = [0, RECORD_BYTES - MAGIC.length].every((at) =>
    MAGIC.every((byte, index) => record[at + index] === byte),
  );
  if (!hasMagic || view.getUint32(8) !== VERSION) return undefined;
  const end = Number(view.getBigUint64(16));
  const tailBytes = Number(view.getBigUint64(32));
  if (end > deviceBytes - RECORD_BYTES || tailBytes > Math.min(end, MAX_DEVICE_STATE_BYTES)) return undefined;
  const hash = record.subarray(FIELDS_BYTES, FIELDS_BYTES + HASH_BYTES);
  return { end, tailBytes, fields: record.subarray(0, FIELDS_BYTES), hash };
}

/** Whether the record is of the image that is there, going by its first page and its tail. */
export function isOf({ fields, hash }: DeviceRecord, head: Uint8Array, tail: Uint8Array): boolean {
  return hashOf(fields, head, tail).equals(hash);
}

function hashOf(...parts: Uint8Array[]): Buffer {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
}
