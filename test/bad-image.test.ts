import { execFileSync } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  openSync,
  readSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cleanup } from './support/cleanup.ts';
import { failWith, succeed } from './support/cli.ts';
import { pausedGuest, testCleanup, waitingQemu } from './support/fixtures.ts';
import { expectSameRam, Image, type ImageBlock } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import type { Qemu } from './support/qemu.ts';

// Truncated and foreign images, and flips in checked fields: refused with the place named, and QEMU is not touched.

const cleanup = new Cleanup();
let directory: string;
let good: string;
let size: number;
let blocks: ImageBlock[];
let ramEnd: number;
let waiting: Qemu;

beforeAll(async () => {
  directory = diskDirectory(cleanup);
  good = join(directory, 'good');
  const source = await pausedGuest(cleanup);
  await succeed(['save', '--qmp', source.socket, good]);
  const image = new Image(good);
  image.close();
  ({ blocks, ramEnd, size } = image);
  waiting = await waitingQemu(cleanup, { paused: true });
});

afterAll(() => cleanup.run());

function damaged(damage: (file: number, path: string) => void): string {
  const path = join(directory, 'damaged');
  execFileSync('cp', ['--sparse=always', good, path]);
  const file = openSync(path, 'r+');
  damage(file, path);
  closeSync(file);
  return path;
}

/** Expects that both commands refuse the file, and that the waiting QEMU still waits. */
async function expectRefused(path: string): Promise<{ offset: number; field: string }> {
  const seen = waiting.qmp.events.length;
  const inspected = await failWith(3, 'E_IMAGE_INVALID', ['inspect', path]);
  const restored = await failWith(3, 'E_IMAGE_INVALID', ['restore', '--qmp', waiting.socket, path]);
  expect(restored.guestState).toBe('untouched');
  expect(restored.error).toMatchObject({
    path,
    offset: inspected.error?.offset,
    field: inspected.error?.field,
  });
  expect(restored.error?.offset, 'the offset of the fault').toBeTypeOf('number');
  expect(restored.error?.field, 'the field at fault').toMatch(/\w/);
  expect(await waiting.qmp.status()).toBe('inmigrate');
  expect(waiting.qmp.events.slice(seen)).toEqual([]);
  return { offset: restored.error?.offset as number, field: restored.error?.field as string };
}

function block(name: string): ImageBlock {
  const found = blocks.find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`no ${name}`);
  return found;
}

/** Where a field of a block's header stands. */
function fieldOffset(of: ImageBlock, field: 'used' | 'version' | 'pageSize' | 'bitmap' | 'pages'): number {
  const behindName = of.headerOffset + 1 + of.name.length;
  return behindName + { used: 0, version: 8, pageSize: 12, bitmap: 20, pages: 28 }[field];
}

function put64(file: number, offset: number, value: number): void {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  writeSync(file, bytes, 0, 8, offset);
}

function flip(file: number, offset: number, mask = 0x01): void {
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, offset);
  writeSync(file, Buffer.of((byte[0] as number) ^ mask), 0, 1, offset);
}

describe('truncated', () => {
  test.for<[string, () => number]>([
    ['to nothing', () => 0],
    ['in the magic', () => 3],
    ['in the machine name', () => 15],
    ['in the first block header', () => fieldOffset(blocks[0] as ImageBlock, 'pages')],
    ['in the first bitmap', () => (blocks[0] as ImageBlock).header[2] + 5],
    ['in the first block’s pages', () => (blocks[0] as ImageBlock).header[3] + 8192],
    ['in the last block’s pages', () => (blocks.at(-1) as ImageBlock).header[3] + 1],
    ['right behind the RAM section', () => ramEnd],
    ['in the device state', () => ramEnd + Math.floor((size - ramEnd) / 3)],
    ['by the last byte of its description', () => size - 1],
  ])('%s', async ([, length]) => {
    const path = damaged((file) => ftruncateSync(file, length()));
    const { offset } = await expectRefused(path);
    expect(offset).toBeLessThanOrEqual(size);
  });
});

describe('foreign', () => {
  test('a text file', async () => {
    const path = join(directory, 'text');
    writeFileSync(path, 'It was a dark and stormy night.\n'.repeat(100));
    expect(await expectRefused(path)).toMatchObject({ offset: 0, field: expect.stringMatching(/magic/i) });
  });

  test('a file of zeros', async () => {
    const path = join(directory, 'zeros');
    writeFileSync(path, '');
    truncateSync(path, 1 << 20);
    expect(await expectRefused(path)).toMatchObject({ offset: 0 });
  });

  test('QEMU’s classic stream, without mapped-ram', async () => {
    const local = testCleanup();
    const path = join(directory, 'classic');
    const source = await pausedGuest(local);
    await source.qmp.execute('migrate', { uri: `file:${path}` });
    await source.qmp.waitForStatus('postmigrate');
    await expectRefused(path);
  });
});

describe('a flip in a checked field', () => {
  test.for<[string, () => number, RegExp]>([
    ['the magic', () => 2, /magic/i],
    ['the version', () => 7, /version/i],
    ['the configuration’s mark', () => 8, /config/i],
    ['the high byte of the machine name’s length', () => 9, /machine|name/i],
    ['the capability’s name', () => 0x40, /capab/i],
    ['the RAM section’s version', () => 0x57, /version/i],
    ['a header’s version', () => fieldOffset(block('pc.bios'), 'version') + 2, /version/i],
    ['a header’s page size', () => fieldOffset(block('pc.bios'), 'pageSize') + 6, /page.?size/i],
    ['the top of a bitmap offset', () => fieldOffset(block('pc.bios'), 'bitmap') + 1, /bitmap/i],
    ['a pages offset, no longer aligned', () => fieldOffset(block('pc.bios'), 'pages') + 7, /pages/i],
    [
      'a used length, no longer of whole pages',
      () => fieldOffset(block('pc.bios'), 'used') + 7,
      /used|length|total/i,
    ],
  ])('%s', async ([, at, field]) => {
    const place = at();
    const found = await expectRefused(damaged((file) => flip(file, place)));
    expect(found.field).toMatch(field);
    expect(Math.abs(found.offset - place), 'the offset names the field').toBeLessThanOrEqual(32);
  });

  test('the footer of the RAM section', async () => {
    await expectRefused(damaged((file) => flip(file, ramEnd - 1)));
  });

  test('the type of the first section behind RAM', async () => {
    await expectRefused(damaged((file) => flip(file, ramEnd, 0x70)));
  });
});

describe('a field that contradicts another', () => {
  test('page size 0, which crashes QEMU', async () => {
    const place = fieldOffset(block('pc.bios'), 'pageSize');
    const found = await expectRefused(damaged((file) => put64(file, place, 0)));
    expect(found.offset).toBe(place);
  });

  test('a total of one page less', async () => {
    const total = blocks.reduce((sum, { used }) => sum + used, 0);
    await expectRefused(
      damaged((file) => put64(file, (blocks[0] as ImageBlock).headerOffset - 8, total - 4096 + 4)),
    );
  });

  test('a total of one page more', async () => {
    const total = blocks.reduce((sum, { used }) => sum + used, 0);
    await expectRefused(
      damaged((file) => put64(file, (blocks[0] as ImageBlock).headerOffset - 8, total + 4096 + 4)),
    );
  });

  test('pages of one block in the place of another’s', async () => {
    const place = fieldOffset(block('pc.bios'), 'pages');
    await expectRefused(damaged((file) => put64(file, place, (blocks[0] as ImageBlock).header[3])));
  });

  test('a bitmap far beyond the end of the file', async () => {
    const place = fieldOffset(block('pc.bios'), 'bitmap');
    const found = await expectRefused(damaged((file) => put64(file, place, 2 ** 50)));
    expect(found.offset).toBe(place);
  });

  test('a bitmap in the pages of a block', async () => {
    const place = fieldOffset(block('pc.bios'), 'bitmap');
    for (const within of [block('pc.bios'), blocks[0] as ImageBlock]) {
      const found = await expectRefused(damaged((file) => put64(file, place, within.header[3] + 8192)));
      expect(found).toEqual({ offset: place, field: 'bitmap_offset' });
    }
  });

  test('pages far beyond the end of the file', async () => {
    // Whether the offset is wrong or the file is cut short cannot be told: the place of the page that is not there is named.
    const place = fieldOffset(block('pc.bios'), 'pages');
    const found = await expectRefused(damaged((file) => put64(file, place, 2 ** 50)));
    expect(found).toMatchObject({ field: 'pages' });
    expect(found.offset).toBeGreaterThanOrEqual(2 ** 50);
  });
});

test('no image at all', async () => {
  const failure = await failWith(1, 'E_NOT_FOUND', [
    'restore',
    '--qmp',
    waiting.socket,
    join(directory, 'none'),
  ]);
  expect(failure.guestState).toBe('untouched');
  expect(statSync(good).size).toBe(size);
});

test('the QEMU that waited through all of this takes a good image', async () => {
  await succeed(['restore', '--qmp', waiting.socket, good]);
  expect(await waiting.qmp.status()).toBe('paused');
  await expectSameRam(waiting, good);
});
