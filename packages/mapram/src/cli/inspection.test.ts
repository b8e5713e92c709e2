import { expect, it } from 'vitest';
import { describeInspection } from './inspection.ts';

it('is a few lines and a table', () => {
  const text = describeInspection({
    image: '/i',
    offset: 0,
    machine: 'pc-q35-10.0',
    capabilities: ['mapped-ram'],
    runState: 'running',
    pageBytes: 4096,
    guestBytes: 4295229440,
    dataBytes: 40960,
    pages: 1048640,
    zeroPages: 1048630,
    deviceStateBytes: 13_000,
    hasVmDescription: true,
    imageBytes: 4297326592,
    trailingBytes: 0,
    fileBytes: 4297326592,
    allocatedBytes: 1048576,
    blocks: [
      {
        name: 'pc.ram',
        length: 4294967296,
        pages: 1048576,
        dataPages: 8,
        bitmapOffset: 139,
        pagesOffset: 1048576,
      },
      {
        name: 'pc.bios',
        length: 262144,
        pages: 64,
        dataPages: 2,
        bitmapOffset: 4296015916,
        pagesOffset: 4297064448,
      },
    ],
  });
  expect(text).toBe(
    [
      'image      /i',
      'file       4.0 GiB long, 1 MiB on disk',
      'machine    pc-q35-10.0, saved while running',
      'needs      mapped-ram',
      'guest      4.0 GiB of RAM in 2 blocks',
      'data       40 KiB; 1,048,630 of 1,048,640 pages are zero',
      'devices    12.7 KiB of state, described by JSON',
      '',
      'block     length  data pages         of    bitmap at     pages at',
      'pc.ram     4 GiB           8  1,048,576         0x8b     0x100000',
      'pc.bios  256 KiB           2         64  0x10010002c  0x100200000',
      '',
    ].join('\n'),
  );
});
