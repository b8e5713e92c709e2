import { expect, it } from 'vitest';
import { formatBytes, formatCount, formatDuration, formatRate } from './units.ts';

it.each([
  [0, '0 bytes'],
  [1023, '1023 bytes'],
  [1024, '1 KiB'],
  [1536, '1.5 KiB'],
  [4 * 1024 ** 3, '4 GiB'],
  [512.4 * 1024 ** 2, '512 MiB'],
  [3 * 1024 ** 5 * 1024, '3072 PiB'],
])('%d bytes are %s', (bytes, text) => expect(formatBytes(bytes)).toBe(text));

it.each([
  [0.4, '0.4 ms'],
  [1780, '1.78 s'],
  [59_994, '59.99 s'],
  [185_000, '3 min 05 s'],
])('%d ms are %s', (milliseconds, text) => expect(formatDuration(milliseconds)).toBe(text));

it('groups thousands', () => {
  expect(formatCount(7)).toBe('7');
  expect(formatCount(1234567)).toBe('1,234,567');
  expect(formatRate(2_409_600_000)).toBe('2,410 MB/s');
});
