import { expect, it } from 'vitest';
import type { TransferReport } from '../report.ts';
import { describeRestore, describeSave } from './results.ts';

const REPORT: TransferReport = {
  image: '/i',
  guestBytes: 4 * 1024 ** 3,
  dataBytes: 1024 ** 3,
  zeroPages: 786_432,
  pages: 1_048_576,
  durationMs: 500,
  pauseMs: 512.34,
  bytesPerSecond: 2_147_483_648,
  cpuSeconds: 0.456,
  channels: 1,
  queueDepth: 8,
  engine: 'io-uring',
  direct: true,
  copiedBytes: 8192,
  blocks: [{ name: 'pc.ram', length: 4 * 1024 ** 3, pages: 1_048_576, dataPages: 262_144 }],
};

it('says what a save did', () => {
  expect(describeSave(REPORT)).toBe(
    [
      'saved      /i',
      'guest      4 GiB of RAM in 1 block',
      'data       1 GiB; 786,432 of 1,048,576 pages are zero',
      'speed      2,147 MB/s of data in 500.0 ms, 0.46 CPU seconds',
      'paused     512.3 ms',
      'engine     io-uring, direct I/O, 8 KiB copied, 1 channel, queue depth 8',
      '',
    ].join('\n'),
  );
});

it.each([
  ['running', 'state      the guest is running\n'],
  ['paused', 'state      the guest is paused\n'],
  ['gone', "state      the guest's QEMU has ended\n"],
] as const)('says that the guest is %s', (guestState, line) => {
  expect(describeSave({ ...REPORT, guestState }).endsWith(line)).toBe(true);
});

it('says what a restore did', () => {
  const text = describeRestore({ ...REPORT, method: 'qemu', engine: 'qemu', direct: false, channels: 8 });
  expect(text).toContain('restored   /i\n');
  expect(text).toContain('method     qemu\n');
  expect(text).toContain('engine     qemu, through the page cache, 8 channels, queue depth 8\n');
});
