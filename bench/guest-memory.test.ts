import { expect, it } from 'vitest';
import type { Cleanup } from '../test/support/cleanup.ts';
import { IS_ROOT } from '../test/support/filesystem.ts';
import { bytesMappedHuge, memoryPlace } from './guest-memory.ts';

const mapping = (range: string, kilobytes: number) =>
  `${range} rw-s 00000000 00:27 2 /mnt/memory\nRss:  ${kilobytes} kB\nShmemPmdMapped:   ${kilobytes} kB\nFilePmdMapped:  0 kB\n`;

it('counts the huge pages of one mapping', () => {
  const smaps = mapping('7f0000000000-7f0010000000', 4096) + mapping('7f0020000000-7f0030000000', 2048);
  expect(bytesMappedHuge(smaps, 0x7f0000000000)).toBe(4 << 20);
  expect(bytesMappedHuge(smaps, 0x7f0020000000)).toBe(2 << 20);
  expect(bytesMappedHuge(smaps, 0x7f0010000000)).toBe(0);
});

it.skipIf(!IS_ROOT)('asks the kernel for no more huge pages than there is memory', () => {
  const cleanup = { add: () => expect.unreachable('something was reserved') } as unknown as Cleanup;
  expect(() => memoryPlace('hugetlb', 2 ** 50, cleanup)).toThrow(/1073741824 MiB in huge pages, and \d+ MiB/);
});
