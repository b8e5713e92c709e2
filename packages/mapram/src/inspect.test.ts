import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { encodeImage, layoutImage } from './image/index.ts';
import { inspect } from './inspect.ts';

const MiB = 1024 ** 2;
const directory = mkdtempSync(join(tmpdir(), 'mapram-inspect-'));
afterAll(() => rmSync(directory, { recursive: true }));

it('says what an image holds, from its structure alone', async () => {
  const blocks = [
    { name: 'pc.ram', usedLength: 64 * MiB },
    { name: 'pc.bios', usedLength: 64 * 4096 },
  ];
  const layout = layoutImage({ machine: 'pc-i440fx-10.0', blocks });
  const bitmaps = [new Uint8Array(2048), new Uint8Array(8).fill(0xff)];
  bitmaps[0]?.set([0b1011], 3);
  const encoded = encodeImage({ layout, bitmaps, deviceState: Uint8Array.of(0) });
  const path = join(directory, 'image');
  const fd = openSync(path, 'w');
  for (const part of encoded.parts) writeSync(fd, part.bytes, 0, part.bytes.length, part.offset);
  ftruncateSync(fd, encoded.length + 7);
  closeSync(fd);

  const report = await inspect(path);
  expect(report).toMatchObject({
    image: path,
    offset: 0,
    machine: 'pc-i440fx-10.0',
    capabilities: ['mapped-ram'],
    pageBytes: 4096,
    guestBytes: 64 * MiB + 64 * 4096,
    dataBytes: 67 * 4096,
    pages: 16_384 + 64,
    zeroPages: 16_384 - 3,
    deviceStateBytes: 1,
    hasVmDescription: true,
    imageBytes: encoded.length,
    trailingBytes: 7,
    fileBytes: encoded.length + 7,
  });
  expect(report.runState).toBeUndefined();
  expect(report.allocatedBytes).toBeLessThan(MiB);
  expect(report.blocks).toEqual([
    {
      name: 'pc.ram',
      length: 64 * MiB,
      pages: 16_384,
      dataPages: 3,
      bitmapOffset: layout.blocks[0]?.bitmapOffset,
      pagesOffset: MiB,
    },
    {
      name: 'pc.bios',
      length: 64 * 4096,
      pages: 64,
      dataPages: 64,
      bitmapOffset: layout.blocks[1]?.bitmapOffset,
      pagesOffset: layout.blocks[1]?.pagesOffset,
    },
  ]);
});

it.each([
  ['an empty path', '', {}, /path of the image is .*empty/, 'image'],
  ['no path', 7, {}, /it is no text/, 'image'],
  ['an unknown option', '/i', { unknown: 1 }, /there is no such option/, 'unknown'],
  ['a negative offset', '/i', { offset: -1 }, /no whole number of bytes/, 'offset'],
  ['no options', '/i', null, /no object/, undefined],
])('refuses %s', async (_, path, options, message, field) => {
  await expect(inspect(path as string, options as object)).rejects.toMatchObject({
    code: 'E_USAGE',
    message: expect.stringMatching(message),
    field,
  });
});
