import { type ImageBlock, PAGE_BYTES } from './image/index.ts';
import type { JobContext } from './job.ts';

/** One RAM block of a finished save or restore. */
export interface BlockReport {
  /** QEMU's name of the block. */
  name: string;
  /** Used length in bytes. */
  length: number;
  /** Number of guest pages in the block. */
  pages: number;
  /** Number of them that the image stores; all others read zero. */
  dataPages: number;
}

/** How many pages a guest has, and how many of them an image stores. */
export interface PageCounts {
  /** Bytes of guest RAM in all blocks. */
  guestBytes: number;
  /** Bytes of guest RAM that the image stores. */
  dataBytes: number;
  /** Number of guest pages that the image does not store because they read zero. */
  zeroPages: number;
  /** Number of guest pages in all blocks. */
  pages: number;
}

/** What a save or a restore did. */
export interface TransferReport extends PageCounts {
  /** The image's path as the caller gave it. */
  image: string;
  /** Milliseconds from `stop` to the published, durable image, or from the first write into the guest to its restored end. */
  durationMs: number;
  /**
   * Milliseconds for which a guest that was running stood still; up to the end of the save if it is not resumed. It is resumed
   * as soon as its memory has been read, which may be before the image is durable. For a restore, `durationMs`.
   */
  pauseMs: number;
  /** `dataBytes` over `durationMs`. */
  bytesPerSecond: number;
  /** Processor seconds of this whole process, from the call of save or restore to its end. */
  cpuSeconds: number;
  /** Number of channels. */
  channels: number;
  /** Requests in flight on each thread. */
  queueDepth: number;
  /** The I/O engine that moved the pages; `qemu` if QEMU's own loader did. */
  engine: string;
  /** Whether the image was accessed by direct I/O. */
  direct: boolean;
  /** Bytes of guest memory that went through a buffer of ours; all else was written or read where it is, or moved by QEMU. */
  copiedBytes: number;
  /** The RAM blocks in the image's order. */
  blocks: BlockReport[];
  /** How the guest was left; absent for memory that is not QEMU's. */
  guestState?: 'running' | 'paused' | 'gone';
}

/** What a save did. */
export type SaveReport = TransferReport;

/** What a restore into a guest did. */
export interface RestoreReport extends TransferReport {
  /** How the pages got into the guest. */
  method: 'fill' | 'qemu';
}

/** What a restore into memory that is not QEMU's did. */
export interface MemoryRestoreReport extends TransferReport {
  /** The machine type that the image records. */
  machine: string;
  /** The device state that the image holds, as it was given to save. */
  deviceState: Uint8Array;
}

/** A RAM block and the number of its pages that the image stores. */
type CountedBlock = Pick<ImageBlock, 'name' | 'usedLength' | 'setPages'>;

/** How a transfer was done. */
type TransferFacts = Pick<
  TransferReport,
  'image' | 'durationMs' | 'pauseMs' | 'channels' | 'queueDepth' | 'engine' | 'direct'
> & { blocks: readonly CountedBlock[] };

/** Draws the report up. */
export function transferReport(facts: TransferFacts, job: JobContext): TransferReport {
  const { image, durationMs, pauseMs, channels, queueDepth, engine, direct } = facts;
  const counts = countPages(facts.blocks);
  const bytesPerSecond = durationMs === 0 ? 0 : (counts.dataBytes * 1000) / durationMs;
  return {
    image,
    ...counts,
    durationMs,
    pauseMs,
    bytesPerSecond,
    cpuSeconds: job.cpuSeconds(),
    channels,
    queueDepth,
    engine,
    direct,
    copiedBytes: job.copiedBytes,
    blocks: facts.blocks.map(blockReport),
  };
}

/** What is counted of all blocks together. */
export function countPages(blocks: readonly CountedBlock[]): PageCounts {
  const guestBytes = blocks.reduce((sum, { usedLength }) => sum + usedLength, 0);
  const dataPages = blocks.reduce((sum, { setPages }) => sum + setPages, 0);
  const pages = guestBytes / PAGE_BYTES;
  return { guestBytes, dataBytes: dataPages * PAGE_BYTES, zeroPages: pages - dataPages, pages };
}

/** What is said of one block. */
export function blockReport({ name, usedLength, setPages }: CountedBlock): BlockReport {
  return { name, length: usedLength, pages: usedLength / PAGE_BYTES, dataPages: setPages };
}
