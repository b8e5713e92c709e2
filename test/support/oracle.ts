import { createHash } from 'node:crypto';
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import type { Qemu } from './qemu.ts';
import { type LiveBlock, liveBlocks, RamReader } from './ram.ts';

// A second, independent reader of mapped-ram images, written from the format's description alone: the product's codec must
// not be its own judge. It takes only what QEMU 10 writes on x86-64, and throws at anything else.

const PAGE = 4096;
const PIECE = 4 << 20;
const ZERO_PAGE = Buffer.alloc(PAGE);

/** One RAM block of an image. */
export interface ImageBlock {
  name: string;
  used: number;
  /** Where the block's header stands. */
  headerOffset: number;
  /** The mapped-ram header: version, page size, bitmap offset, pages offset. */
  header: [number, number, number, number];
  bitmap: Buffer;
}

/** An image, opened. */
export class Image {
  readonly #file: number;
  readonly machine: string;
  readonly blocks: ImageBlock[] = [];
  /** Offset of the byte behind the RAM section's SETUP part. */
  readonly ramEnd: number;
  readonly size: number;
  readonly allocated: number;
  /** The run state that the globalstate section records. */
  readonly runState: string;

  constructor(path: string) {
    this.#file = openSync(path, 'r');
    const status = fstatSync(this.#file);
    this.size = status.size;
    this.allocated = status.blocks * 512;
    const cursor = new Cursor((offset, length) => this.#bytes(offset, length));
    expectEqual('magic', cursor.u32(), 0x5145564d);
    expectEqual('version', cursor.u32(), 3);
    expectEqual('configuration', cursor.u8(), 7);
    this.machine = cursor.text(cursor.u32());
    skipCapabilities(cursor);
    let total = startOfRam(cursor);
    while (total > 0) {
      const block = readBlock(cursor);
      this.blocks.push(block);
      total -= block.used;
    }
    expectEqual('total of the blocks', total, 0);
    expectEqual('end of the RAM section', cursor.u64(), 0x10);
    expectEqual('footer', cursor.u8(), 0x7e);
    cursor.u32();
    this.ramEnd = cursor.offset;
    this.runState = readRunState(this.#bytes(this.ramEnd, this.size - this.ramEnd));
  }

  /** Reads a block's memory as a loader would see it; pages with a clear bit are zero. */
  read(block: ImageBlock, offset: number, buffer: Buffer): void {
    this.readRaw(block, offset, buffer);
    for (let at = 0; at < buffer.length; at += PAGE)
      if (!isSet(block.bitmap, (offset + at) / PAGE)) buffer.fill(0, at, at + PAGE);
  }

  /** Reads what the file holds in a block's place, whatever the bitmap says; beyond its end, zeros. */
  readRaw(block: ImageBlock, offset: number, buffer: Buffer): void {
    const got = readSync(this.#file, buffer, 0, buffer.length, block.header[3] + offset);
    buffer.fill(0, got);
  }

  close(): void {
    closeSync(this.#file);
  }

  #bytes(offset: number, length: number): Buffer {
    const buffer = Buffer.alloc(length);
    const got = readSync(this.#file, buffer, 0, length, offset);
    if (got !== length) throw new Error(`the image ends at ${offset + got}`);
    return buffer;
  }
}

/** Headers, bitmaps and pages of an image's RAM section in one digest: equal digests, equal sections. */
export function ramDigest(path: string): string {
  const image = new Image(path);
  const hash = createHash('sha256');
  const buffer = Buffer.alloc(PIECE);
  for (const block of image.blocks) {
    hash
      .update(JSON.stringify([block.name, block.used, block.headerOffset, block.header]))
      .update(block.bitmap);
    for (let offset = 0; offset < block.used; offset += PIECE) {
      const piece = buffer.subarray(0, Math.min(PIECE, block.used - offset));
      image.read(block, offset, piece);
      hash.update(piece);
    }
  }
  image.close();
  return hash.digest('hex');
}

/** How strictly an image is held to the memory it was made of. */
export interface Strictness {
  /** A page's bit is set exactly if the page is not zero, and the file holds nothing under a clear bit. */
  canonical: boolean;
}

/** Throws at the first page in which a paused guest's memory and an image differ. */
export async function expectSameRam(
  qemu: Qemu,
  path: string,
  strictness: Strictness = { canonical: false },
): Promise<void> {
  const image = new Image(path);
  const reader = new RamReader(qemu);
  try {
    const blocks = await liveBlocks(qemu);
    const names = (list: { name: string; used: number }[]) =>
      list.map(({ name, used }) => `${name} ${used}`).join(', ');
    expectEqual('RAM blocks', names(image.blocks), names(blocks));
    for (const [index, block] of image.blocks.entries())
      compareBlock(image, block, reader, blocks[index] as LiveBlock, strictness);
  } finally {
    reader.close();
    image.close();
  }
}

function compareBlock(
  image: Image,
  saved: ImageBlock,
  reader: RamReader,
  live: LiveBlock,
  strictness: Strictness,
): void {
  const fromFile = Buffer.alloc(PIECE);
  const fromGuest = Buffer.alloc(PIECE);
  for (let offset = 0; offset < saved.used; offset += PIECE) {
    const length = Math.min(PIECE, saved.used - offset);
    const file = fromFile.subarray(0, length);
    const guest = fromGuest.subarray(0, length);
    reader.read(live, offset, guest);
    if (strictness.canonical) {
      image.readRaw(saved, offset, file);
      expectCanonicalBits(saved, offset, guest);
    } else image.read(saved, offset, file);
    if (!file.equals(guest))
      throw new Error(`${saved.name}: page ${offset / PAGE + firstDifference(file, guest)} differs`);
  }
}

function expectCanonicalBits(block: ImageBlock, offset: number, guest: Buffer): void {
  for (let at = 0; at < guest.length; at += PAGE) {
    const isData = guest.compare(ZERO_PAGE, 0, PAGE, at, at + PAGE) !== 0;
    if (isSet(block.bitmap, (offset + at) / PAGE) !== isData)
      throw new Error(
        `${block.name}: page ${(offset + at) / PAGE} is ${isData ? '' : 'not '}data and its bit says otherwise`,
      );
  }
}

function firstDifference(a: Buffer, b: Buffer): number {
  let page = 0;
  while (a.compare(b, page * PAGE, (page + 1) * PAGE, page * PAGE, (page + 1) * PAGE) === 0) page++;
  return page;
}

/** Bytes of all pages whose bit is set. */
export function dataBytes(path: string): number {
  const image = new Image(path);
  image.close();
  let pages = 0;
  for (const block of image.blocks)
    for (const byte of block.bitmap) for (let bits = byte; bits > 0; bits &= bits - 1) pages++;
  return pages * PAGE;
}

function isSet(bitmap: Buffer, page: number): boolean {
  return (((bitmap[page >> 3] as number) >> (page & 7)) & 1) === 1;
}

function skipCapabilities(cursor: Cursor): void {
  expectEqual('subsection', cursor.u8(), 5);
  expectEqual('subsection name', cursor.text(cursor.u8()), 'configuration/capabilities');
  expectEqual('subsection version', cursor.u32(), 1);
  expectEqual('capabilities', cursor.u32(), 1);
  expectEqual('capability', cursor.text(cursor.u8()), 'mapped-ram');
}

function startOfRam(cursor: Cursor): number {
  expectEqual('section start', cursor.u8(), 1);
  cursor.u32();
  expectEqual('section name', cursor.text(cursor.u8()), 'ram');
  expectEqual('instance', cursor.u32(), 0);
  expectEqual('RAM version', cursor.u32(), 4);
  const total = cursor.u64();
  expectEqual('flags of the total', total % PAGE, 4);
  return total - 4;
}

function readBlock(cursor: Cursor): ImageBlock {
  const headerOffset = cursor.offset;
  const name = cursor.text(cursor.u8());
  const used = cursor.u64();
  const header: ImageBlock['header'] = [cursor.u32(), cursor.u64(), cursor.u64(), cursor.u64()];
  expectEqual(`${name}: header version`, header[0], 1);
  expectEqual(`${name}: page size`, header[1], PAGE);
  expectEqual(`${name}: bitmap offset`, header[2], cursor.offset);
  const bitmap = cursor.bytes(8 * Math.ceil(used / PAGE / 64));
  expectEqual(`${name}: pages offset`, header[3], Math.ceil(cursor.offset / 2 ** 20) * 2 ** 20);
  cursor.offset = header[3] + used;
  return { name, used, headerOffset, header, bitmap };
}

function readRunState(tail: Buffer): string {
  const name = Buffer.from('\x0bglobalstate\0\0\0\0\0\0\0\x01', 'latin1');
  const at = tail.indexOf(name);
  if (at < 0) throw new Error('the image has no globalstate section');
  const start = at + name.length + 4;
  return tail.toString('latin1', start, tail.indexOf(0, start));
}

function expectEqual<T>(what: string, found: T, wanted: T): void {
  if (found !== wanted) throw new Error(`${what}: ${found} instead of ${wanted}`);
}

class Cursor {
  offset = 0;
  readonly #bytesAt: (offset: number, length: number) => Buffer;

  constructor(bytesAt: (offset: number, length: number) => Buffer) {
    this.#bytesAt = bytesAt;
  }

  bytes(length: number): Buffer {
    const bytes = this.#bytesAt(this.offset, length);
    this.offset += length;
    return bytes;
  }

  u8(): number {
    return this.bytes(1).readUInt8();
  }

  u32(): number {
    return this.bytes(4).readUInt32BE();
  }

  u64(): number {
    return Number(this.bytes(8).readBigUInt64BE());
  }

  text(length: number): string {
    return this.bytes(length).toString('latin1');
  }
}
