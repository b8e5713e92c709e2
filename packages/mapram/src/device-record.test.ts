import { expect, it } from 'vitest';
import { decodeRecord, encodeRecord } from './device-record.ts';

it('does not believe in a tail that is longer than a device state may be', () => {
  const length = 2 ** 40;
  const image = { parts: [{ offset: 4096, bytes: new Uint8Array(10) }], length };
  const record = encodeRecord(image, 2 * length).bytes;
  expect(decodeRecord(record, 2 * length)).toMatchObject({ end: length, tailBytes: 10 });
  // A gibibyte is the most, and reading any more would take as much memory.
  for (const tailBytes of [2 ** 30 + 1, length]) {
    new DataView(record.buffer).setBigUint64(32, BigInt(tailBytes));
    expect(decodeRecord(record, 2 * length)).toBeUndefined();
  }
});
