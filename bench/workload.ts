import { createCipheriv, createHash } from 'node:crypto';

/** Bytes of a guest page. */
export const PAGE = 4096;
/** Bytes that are made or compared at a time. */
export const PIECE: number = 2 << 20;

/** What the RAM of a measured guest holds. */
export const WORKLOADS = ['dense', 'scattered', 'idle', 'fragmented', 'private'] as const;
/** `huge` is for mapram alone: a guest that no other way of saving leaves sparse. */
export type WorkloadName = (typeof WORKLOADS)[number] | 'huge';

/** A guest's RAM: which pages hold data. The same name and size give the same bytes on every machine. */
export interface Workload {
  name: WorkloadName;
  bytes: number;
  /** One bit a page, lowest first, set if the page holds data; laid out as an image's page bitmap is. */
  bitmap: Buffer;
  dataBytes: number;
  /** Zero pages were never touched. In all other workloads they are memory that was used and cleared again. */
  isSparse: boolean;
}

/** Bytes of RAM that a workload has unless told otherwise: what the issue of idle guests is about only shows when they are large. */
export function defaultBytes(name: WorkloadName): number {
  return name === 'idle' ? 12 * 2 ** 30 : 2 * 2 ** 30;
}

/** Describes the workload `name` of `bytes` (a multiple of 4 MiB). */
export function makeWorkload(name: WorkloadName, bytes: number): Workload {
  const pages = bytes / PAGE;
  const bitmap = Buffer.alloc(8 * Math.ceil(pages / 64));
  PLACE[name](pages, (page) => {
    bitmap[page >> 3] = (bitmap[page >> 3] ?? 0) | (1 << (page & 7));
  });
  return {
    name,
    bytes,
    bitmap,
    dataBytes: countBits(bitmap) * PAGE,
    isSparse: name === 'idle' || name === 'huge',
  };
}

/** True if the page holds data. */
export function isData(workload: Workload, page: number): boolean {
  return (((workload.bitmap[page >> 3] ?? 0) >> (page & 7)) & 1) === 1;
}

/** True if any of the pages of the piece at `offset` holds data. */
export function hasData(workload: Workload, offset: number): boolean {
  const first = offset / PAGE / 8;
  return workload.bitmap.subarray(first, first + PIECE / PAGE / 8).some((byte) => byte !== 0);
}

/**
 * Makes the bytes that the guest's RAM holds at `offset`, a multiple of {@link PIECE}.
 *
 * @param into at least {@link PIECE} long; what is made of it is returned, shorter at the end of RAM.
 */
export function contents(workload: Workload, offset: number, into: Buffer): Buffer {
  const bytes = into.subarray(0, Math.min(PIECE, workload.bytes - offset));
  // Random access into one key stream: the counter of AES-CTR is the offset in blocks of 16 bytes.
  const counter = Buffer.alloc(16);
  counter.writeBigUInt64BE(BigInt(offset / 16), 8);
  const cipher = createCipheriv('aes-128-ctr', KEY, counter);
  for (let at = 0; at < bytes.length; at += ZEROS.length) cipher.update(ZEROS).copy(bytes, at);
  for (let at = 0; at < bytes.length; at += PAGE)
    if (!isData(workload, (offset + at) / PAGE)) bytes.fill(0, at, at + PAGE);
  return bytes;
}

const KEY = createHash('sha256').update('mapram bench').digest().subarray(0, 16);
// As much as is enciphered at a time: larger buffers would each be fresh memory of the kernel's, at twice the time.
const ZEROS = Buffer.alloc(64 << 10);

type Placement = (pages: number, setData: (page: number) => void) => void;

const dense: Placement = (pages, setData) => {
  // One run of 1 MiB of zero pages in each 10 MiB, at a page of its own: runs do not sit on anyone's grid.
  const group = 2560;
  const run = 256;
  const random = generator(1);
  for (let start = 0; start < pages; start += group) {
    const length = Math.min(group, pages - start);
    const zero = length < group ? length : Math.floor(random() * (group - run + 1));
    for (let page = 0; page < length; page++) if (page < zero || page >= zero + run) setData(start + page);
  }
};

/** One run of 2 MiB is touched in each `runs` of them, somewhere. */
function touchedOnceIn(runs: number): Placement {
  const run = 512;
  return (pages, setData) => {
    const random = generator(2);
    for (let start = 0; start < pages; start += runs * run) {
      const places = Math.min(runs, Math.ceil((pages - start) / run));
      const first = start + Math.floor(random() * places) * run;
      for (let page = first; page < Math.min(first + run, pages); page++) setData(page);
    }
  };
}

const PLACE: Record<WorkloadName, Placement> = {
  dense,
  private: dense,
  scattered: (pages, setData) => {
    for (let page = 0; page < pages; page++) if (page % 10 !== 9) setData(page);
  },
  idle: touchedOnceIn(12),
  huge: touchedOnceIn(256),
  fragmented: (pages, setData) => {
    const cluster = 32;
    const random = generator(3);
    for (let start = 0; start < pages; start += 2 * cluster) {
      const first = start + (random() < 0.5 ? 0 : cluster);
      for (let page = first; page < Math.min(first + cluster, pages); page++) setData(page);
    }
  },
};

/** The generator "mulberry32": small, seeded, and good enough to place runs of pages. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function countBits(bitmap: Buffer): number {
  let bits = 0;
  for (const byte of bitmap) for (let rest = byte; rest > 0; rest &= rest - 1) bits++;
  return bits;
}
