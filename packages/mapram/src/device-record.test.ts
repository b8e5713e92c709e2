import { expect, it } from 'vitest';
import { decodeRecord, encodeRecord, isOf, RECORD_BYTES } from './device-record.ts';

const DEVICE_BYTES = 2 ** 43;

function record(): Uint8Array {
  const head = { offset: 0, bytes: new Uint8Array(4096).fill(1) };
  const tail = { offset: 2 ** 42 - 100, bytes: new Uint8Array(100).fill(2) };
  return encodeRecord({ parts: [head, tail], length: 2 ** 42 }, DEVICE_BYTES).bytes;
}

it('finds the end of the image that it was made for', () => {
  const found = decodeRecord(record(), DEVICE_BYTES);
  expect(found).toMatchObject({ end: 2 ** 42, tailBytes: 100 });
  if (found === undefined) return;
  expect(isOf(found, new Uint8Array(4096).fill(1), new Uint8Array(100).fill(2))).toBe(true);
  expect(isOf(found, new Uint8Array(4096).fill(3), new Uint8Array(100).fill(2))).toBe(false);
});

it.each([
  ['an end behind the device', 16, 2 ** 44],
  ['a tail longer than the image', 32, 2 ** 42 + 1],
  ['a tail that would take more memory than any device state', 32, 2 ** 40],
])('is not believed with %s', (_, at, value) => {
  const bytes = record();
  new DataView(bytes.buffer).setBigUint64(at, BigInt(value));
  expect(bytes).toHaveLength(RECORD_BYTES);
  expect(decodeRecord(bytes, DEVICE_BYTES)).toBeUndefined();
});
