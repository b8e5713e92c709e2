import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  readSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { takeDescriptors } from './guest/no-descriptors.fixture.ts';
import { encodeImage, layoutImage } from './image/index.ts';
import { openImage } from './image-file.ts';

const directory = mkdtempSync(join(tmpdir(), 'mapram-open-'));
const path = (name: string): string => join(directory, name);
afterAll(() => rmSync(directory, { recursive: true }));

/** An image of one block of two pages, the second of which holds data, at byte `base` of a file. */
function writeImage(name: string, base: number): number {
  const layout = layoutImage({
    machine: 'pc-q35-10.0',
    blocks: [{ name: 'pc.ram', usedLength: 8192 }],
    base,
  });
  const bitmaps = [Uint8Array.of(2, 0, 0, 0, 0, 0, 0, 0)];
  const { parts, length } = encodeImage({ layout, bitmaps, deviceState: Uint8Array.of(0) });
  const file = new Uint8Array(length);
  for (const part of parts) file.set(part.bytes, part.offset);
  file
    .fill(0xa5, (layout.blocks[0]?.pagesOffset ?? 0) + 4096)
    .set(parts.at(-1)?.bytes ?? [], layout.tailOffset);
  writeFileSync(path(name), file);
  return length;
}

function isOpen(fd: number): boolean {
  try {
    fstatSync(fd);
    return true;
  } catch {
    return false;
  }
}

describe('openImage', () => {
  it('reads the structure and keeps the file open', async () => {
    const length = writeImage('plain', 0);
    const opened = await openImage(path('plain'));
    expect(opened).toMatchObject({
      path: path('plain'),
      length,
      image: { machine: 'pc-q35-10.0', end: length },
    });
    const page = new Uint8Array(1);
    readSync(opened.fd, page, 0, 1, (opened.image.blocks[0]?.pagesOffset ?? 0) + 4096);
    expect(page[0]).toBe(0xa5);
    opened.close();
    opened.close();
    await expect.poll(() => isOpen(opened.fd)).toBe(false);
  });

  it('finds an image inside another file', async () => {
    writeImage('inside', 12_345);
    const opened = await openImage(path('inside'), 12_345);
    expect(opened.image).toMatchObject({ base: 12_345, machine: 'pc-q35-10.0' });
    opened.close();
    await expect(openImage(path('inside'))).rejects.toMatchObject({ code: 'E_IMAGE_INVALID', offset: 0 });
  });

  it('names file, offset and field of a truncated image', async () => {
    const length = writeImage('short', 0);
    truncateSync(path('short'), length - 1);
    await expect(openImage(path('short'))).rejects.toMatchObject({
      code: 'E_IMAGE_INVALID',
      path: path('short'),
      offset: expect.any(Number),
      field: expect.any(String),
    });
  });
});

describe('what is no readable image', () => {
  const server = createServer();
  beforeAll(async () => {
    mkdirSync(path('directory'));
    execFileSync('mkfifo', [path('fifo')]);
    writeFileSync(path('empty'), '');
    writeFileSync(path('text'), 'not an image');
    await new Promise<void>((resolve) => server.listen(path('socket'), resolve));
  });
  afterAll(() => server.close());

  it.each([
    ['missing', 'E_NOT_FOUND'],
    ['text/below', 'E_NOT_FOUND'],
    ['directory', 'E_IMAGE_INVALID'],
    ['fifo', 'E_IMAGE_INVALID'],
    ['socket', 'E_IMAGE_INVALID'],
    ['empty', 'E_IMAGE_INVALID'],
    ['text', 'E_IMAGE_INVALID'],
  ])('%s is %s', async (name, code) => {
    await expect(openImage(path(name))).rejects.toMatchObject({ code, path: path(name) });
  });

  it('any is E_HOST_UNSUPPORTED where this process has no descriptor left', async () => {
    const give = takeDescriptors();
    const refusal: unknown = await openImage(path('text')).catch((error: unknown) => error);
    give();
    expect(refusal).toMatchObject({ code: 'E_HOST_UNSUPPORTED', path: path('text') });
  });

  it('a file of somebody else is E_PERMISSION', async () => {
    writeFileSync(path('locked'), '');
    chmodSync(path('locked'), 0);
    const isRoot = process.geteuid?.() === 0;
    // Root may open anything, so root becomes nobody for the moment.
    if (isRoot) process.seteuid?.(65534);
    try {
      await expect(openImage(path('locked'))).rejects.toMatchObject({ code: 'E_PERMISSION' });
    } finally {
      if (isRoot) process.seteuid?.(0);
    }
  });
});
