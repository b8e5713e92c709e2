import { closeSync, openSync, readSync } from 'node:fs';
import { expectEqualPages } from './check-image.ts';
import { MAIN_BLOCK } from './guest-memory.ts';
import { contents, isData, PAGE, PIECE, type Workload } from './workload.ts';

// The classic migration stream, as far as a stopped guest's has it: QEMU 10.0, migration/savevm.c and migration/ram.c.
const PART = 2;
const LAST_PART = 3;
const FLAG_ZERO = 0x02;
const FLAG_MEM_SIZE = 0x04;
const FLAG_PAGE = 0x08;
const FLAG_EOS = 0x10;
const FLAG_CONTINUE = 0x20;

/**
 * Reads a saved guest that is not mapped-ram (QEMU's plain `file:`) and compares the workload's block with what it must hold.
 *
 * @throws {Error} at the first page that is wrong or of an unknown form, and if a page is missing.
 */
export function checkStream(workload: Workload, path: string): void {
  const stream = new StreamReader(path);
  try {
    const pages = new PageJudge(workload);
    skipHead(stream);
    readRam(stream, pages);
    for (let section = 1; section !== LAST_PART; readRam(stream, pages)) section = nextRamSection(stream);
    pages.expectAll();
  } finally {
    stream.close();
  }
}

/** The file's head, the configuration and the head of the section that starts RAM. */
function skipHead(stream: StreamReader): void {
  expectEqual('magic', stream.unsigned(4), 0x5145564d);
  expectEqual('version', stream.unsigned(4), 3);
  expectEqual('configuration', stream.unsigned(1), 7);
  stream.bytes(stream.unsigned(4));
  expectEqual('start of RAM', stream.unsigned(1), 1);
  stream.unsigned(4);
  expectEqual('name', stream.bytes(stream.unsigned(1)).toString('latin1'), 'ram');
  stream.bytes(8);
}

/** Goes from the end of one part of RAM to the next and tells its type. */
function nextRamSection(stream: StreamReader): number {
  expectEqual('footer', stream.unsigned(1), 0x7e);
  stream.unsigned(4);
  let type = stream.unsigned(1);
  if (type === 8) {
    stream.unsigned(2);
    stream.bytes(stream.unsigned(2));
    type = stream.unsigned(1);
  }
  if (type !== PART && type !== LAST_PART) throw new Error(`section type ${type} amid RAM`);
  stream.unsigned(4);
  return type;
}

function readRam(stream: StreamReader, pages: PageJudge): void {
  for (;;) {
    const record = stream.unsigned(8);
    const flags = record % PAGE;
    if (flags === FLAG_EOS) return;
    if (flags === FLAG_MEM_SIZE) skipBlockList(stream, record - flags);
    else if ((flags & ~FLAG_CONTINUE) === FLAG_PAGE || (flags & ~FLAG_CONTINUE) === FLAG_ZERO) {
      if ((flags & FLAG_CONTINUE) === 0) pages.block = stream.bytes(stream.unsigned(1)).toString('latin1');
      if ((flags & FLAG_ZERO) !== 0) {
        expectEqual('fill byte', stream.unsigned(1), 0);
        pages.take(record - flags, undefined);
      } else pages.take(record - flags, stream.bytes(PAGE));
    } else throw new Error(`unknown flags ${flags} in RAM`);
  }
}

function skipBlockList(stream: StreamReader, total: number): void {
  for (let left = total; left > 0; left -= stream.unsigned(8)) stream.bytes(stream.unsigned(1));
}

/** Compares the pages of the main block as they come. */
class PageJudge {
  block = '';
  readonly #workload: Workload;
  readonly #piece: Buffer = Buffer.alloc(PIECE);
  #pieceOffset = -1;
  #wanted: Buffer = Buffer.alloc(0);
  readonly #seen: Set<number> = new Set();

  constructor(workload: Workload) {
    this.#workload = workload;
  }

  /** A page at `offset` of the current block, or a zero page. */
  take(offset: number, page: Buffer | undefined): void {
    if (this.block !== MAIN_BLOCK) return;
    this.#seen.add(offset / PAGE);
    if (page === undefined) {
      if (isData(this.#workload, offset / PAGE)) throw new Error(`page ${offset / PAGE} is not zero`);
      return;
    }
    const start = offset - (offset % PIECE);
    if (start !== this.#pieceOffset) this.#wanted = contents(this.#workload, start, this.#piece);
    this.#pieceOffset = start;
    expectEqualPages(this.block, offset, page, this.#wanted.subarray(offset - start, offset - start + PAGE));
  }

  /** Throws if a page of the main block never came. */
  expectAll(): void {
    expectEqual('pages in the stream', this.#seen.size, this.#workload.bytes / PAGE);
  }
}

/** Reads a file from front to back in large pieces. */
class StreamReader {
  readonly #file: number;
  readonly #buffer: Buffer = Buffer.alloc(4 << 20);
  #start = 0;
  #end = 0;

  constructor(path: string) {
    this.#file = openSync(path, 'r');
  }

  /** The next `length` bytes, valid until the next call. */
  bytes(length: number): Buffer {
    if (this.#end - this.#start < length) this.#refill(length);
    this.#start += length;
    return this.#buffer.subarray(this.#start - length, this.#start);
  }

  /** The next big-endian number of 1, 2, 4 or 8 bytes. */
  unsigned(length: number): number {
    const bytes = this.bytes(length);
    return length === 8 ? Number(bytes.readBigUInt64BE()) : bytes.readUIntBE(0, length);
  }

  close(): void {
    closeSync(this.#file);
  }

  #refill(least: number): void {
    this.#buffer.copyWithin(0, this.#start, this.#end);
    this.#end -= this.#start;
    this.#start = 0;
    while (this.#end < least) {
      const got = readSync(this.#file, this.#buffer, this.#end, this.#buffer.length - this.#end, null);
      if (got === 0) throw new Error('the stream ends too early');
      this.#end += got;
    }
  }
}

function expectEqual<T>(what: string, found: T, wanted: T): void {
  if (found !== wanted) throw new Error(`${what}: ${found} instead of ${wanted}`);
}
