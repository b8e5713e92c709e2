import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { compareMain, expectEqualPages } from './check-image.ts';
import { checkMemory } from './check-memory.ts';
import { checkStream } from './check-stream.ts';
import { MAIN_BLOCK } from './guest-memory.ts';
import { contents, isData, makeWorkload, PAGE, PIECE } from './workload.ts';

// What voids a run: each kind of damage must be seen.
const WORKLOAD = makeWorkload('dense', 12 * 2 ** 20);
const PAGES = WORKLOAD.bytes / PAGE;
const DATA_PAGE = pageWhere(true);
const ZERO_PAGE = pageWhere(false);

const directory = mkdtempSync(join(tmpdir(), 'mapram-checks-'));
afterAll(() => rmSync(directory, { recursive: true }));

function pageWhere(wanted: boolean): number {
  return (
    Array.from({ length: PAGES }, (_, page) => page).findLast((page) => isData(WORKLOAD, page) === wanted) ??
    -1
  );
}

function ram(): Buffer {
  const pieces: Buffer[] = [];
  for (let offset = 0; offset < WORKLOAD.bytes; offset += PIECE)
    pieces.push(Buffer.from(contents(WORKLOAD, offset, Buffer.alloc(PIECE))));
  return Buffer.concat(pieces);
}

/** Writes `bytes` to a file, those at `damaged` changed. */
function fileOf(bytes: Buffer, damaged?: number): string {
  const path = join(directory, 'file');
  if (damaged !== undefined) bytes.writeUInt8(bytes.readUInt8(damaged) ^ 1, damaged);
  writeFileSync(path, bytes);
  return path;
}

describe('restored memory', () => {
  it('that is right passes', () => checkMemory(WORKLOAD, { path: fileOf(ram()), start: 0 }));

  it.each([
    ['data', DATA_PAGE],
    ['zero', ZERO_PAGE],
  ])('with one wrong bit in a page of %s is found out', (_what, page) => {
    const path = fileOf(ram(), page * PAGE + 77);
    expect(() => checkMemory(WORKLOAD, { path, start: 0 })).toThrow(`page ${page}`);
  });

  it('that is too short is found out', () => {
    const path = fileOf(ram().subarray(0, -PAGE));
    expect(() => checkMemory(WORKLOAD, { path, start: 0 })).toThrow('ends at');
  });
});

describe('the main block of a mapped-ram image', () => {
  const block = { bitmap: WORKLOAD.bitmap, header: [1, PAGE, 0, PAGE] as [number, number, number, number] };
  const image = () => Buffer.concat([Buffer.alloc(PAGE), ram()]);

  it('that is right passes', () => compareMain(WORKLOAD, block, fileOf(image())));

  it.each([
    ['data', DATA_PAGE],
    ['zero', ZERO_PAGE],
  ])('with one wrong bit in a page of %s is found out', async (_what, page) => {
    const path = fileOf(image(), (page + 1) * PAGE + 4095);
    await expect(compareMain(WORKLOAD, block, path)).rejects.toThrow(`page ${page}`);
  });

  it('with one wrong bit in its bitmap is found out', async () => {
    const bitmap = Buffer.from(WORKLOAD.bitmap);
    bitmap.writeUInt8(bitmap.readUInt8(9) ^ 4, 9);
    await expect(compareMain(WORKLOAD, { ...block, bitmap }, fileOf(image()))).rejects.toThrow('bitmap');
  });
});

describe('a plain stream', () => {
  const number = (length: number, value: number) => {
    const bytes = Buffer.alloc(length);
    if (length === 8) bytes.writeBigUInt64BE(BigInt(value));
    else bytes.writeUIntBE(value, 0, length);
    return bytes;
  };
  const name = (text: string) => Buffer.concat([number(1, text.length), Buffer.from(text)]);
  const head = [
    ...[number(4, 0x5145564d), number(4, 3), number(1, 7), number(4, 2), Buffer.from('pc')],
    ...[number(1, 1), number(4, 2), name('ram'), number(8, 4)],
    ...[number(8, WORKLOAD.bytes | 4), name(MAIN_BLOCK), number(8, WORKLOAD.bytes), number(8, 0x10)],
    ...[number(1, 0x7e), number(4, 2), number(1, 3), number(4, 2)],
  ];

  /** The pages of `memory` as QEMU writes them, all but the last `missing`. */
  function stream(memory: Buffer, missing = 0): string {
    const records = Array.from({ length: PAGES - missing }, (_, page) => {
      const isZero = !isData(WORKLOAD, page);
      const flags = (isZero ? 2 : 8) | (page === 0 ? 0 : 0x20);
      const block = page === 0 ? name(MAIN_BLOCK) : Buffer.alloc(0);
      const body = isZero ? number(1, 0) : memory.subarray(page * PAGE, (page + 1) * PAGE);
      return Buffer.concat([number(8, page * PAGE + flags), block, body]);
    });
    return fileOf(Buffer.concat([...head, ...records, number(8, 0x10)]));
  }

  it('that is right passes', () => checkStream(WORKLOAD, stream(ram())));

  it('with one wrong bit is found out', () => {
    const memory = ram();
    memory.writeUInt8(memory.readUInt8(DATA_PAGE * PAGE) ^ 0x80, DATA_PAGE * PAGE);
    expect(() => checkStream(WORKLOAD, stream(memory))).toThrow(`page ${DATA_PAGE}`);
  });

  it('that lacks a page is found out', () =>
    expect(() => checkStream(WORKLOAD, stream(ram(), 1))).toThrow('pages in the stream'));
});

it('pages are not equal to fewer pages', () =>
  expect(() => expectEqualPages('ram', 0, Buffer.alloc(2 * PAGE), Buffer.alloc(PAGE))).toThrow('instead of'));
