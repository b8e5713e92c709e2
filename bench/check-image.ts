import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { succeed } from '../test/support/cli.ts';
import { Image, type ImageBlock } from '../test/support/oracle.ts';
import type { Qemu } from '../test/support/qemu.ts';
import { type LiveBlock, liveBlocks, RamReader } from '../test/support/ram.ts';
import { MAIN_BLOCK } from './guest-memory.ts';
import { contents, hasData, PAGE, PIECE, type Workload } from './workload.ts';

/**
 * Compares all of a mapped-ram image with what it must hold: its structure by `mapram inspect` and by the tests' own reader,
 * the workload's block with the bytes as they are made anew (not as the guest's memory has them: that a save left the memory
 * alone is part of the claim), every other block with the guest's memory.
 *
 * @param cache whether the image was written through the page cache and is still there: reading it from the disk would only take longer.
 * @throws {Error} at the first difference.
 */
export async function checkImage(
  workload: Workload,
  guest: Qemu,
  path: string,
  cache: 'cached' | 'direct' = 'direct',
): Promise<void> {
  // Meanwhile the pages are read, which is waiting for the disk.
  const inspected = succeed(['inspect', path]);
  inspected.catch(() => {});
  const image = new Image(path);
  try {
    const live = await liveBlocks(guest);
    for (const block of live) {
      const saved = image.blocks.find(({ name }) => name === block.name);
      if (saved?.used !== block.used)
        throw new Error(`RAM block ${block.name} is not in the image, or not in full`);
      if (block.name === MAIN_BLOCK) await compareMain(workload, saved, path, cache);
      else compareOther(image, saved, guest, block);
    }
    if (image.blocks.length !== live.length)
      throw new Error('the image holds RAM blocks that the guest has not');
  } finally {
    image.close();
  }
  await inspected;
}

/**
 * Compares the workload's block in the image at `path`: its bitmap and its pages.
 *
 * Pages whose bits are clear must be holes or zeros, so whole pieces are compared, zero pages included. Pieces without any data are
 * not read: no loader looks where all bits are clear, and an idle guest of 12 GiB has little else.
 */
export async function compareMain(
  workload: Workload,
  { bitmap, header }: Pick<ImageBlock, 'bitmap' | 'header'>,
  path: string,
  cache: 'cached' | 'direct' = 'direct',
): Promise<void> {
  if (!bitmap.equals(workload.bitmap))
    throw new Error("the image's page bitmap is not that of the guest's memory");
  const file = cache === 'cached' ? await open(path, 'r') : await openDirect(path);
  try {
    const [wanted, ...buffers] = alignedBuffers(2 + READS_AHEAD) as [Buffer, ...Buffer[]];
    const offsets = Array.from(
      { length: Math.ceil(workload.bytes / PIECE) },
      (_, index) => index * PIECE,
    ).filter((offset) => hasData(workload, offset));
    // Some pieces are read while another one is made and compared.
    const readAt = (turn: number): Promise<Buffer> | undefined => {
      const offset = offsets[turn];
      const buffer = buffers[turn % buffers.length];
      if (offset === undefined || buffer === undefined) return undefined;
      const reading = readPiece(file, buffer, header[3] + offset, workload.bytes - offset);
      // A failure is met when its turn comes, or never if an earlier piece is wrong already.
      reading.catch(() => {});
      return reading;
    };
    const reading = Array.from({ length: READS_AHEAD }, (_, turn) => readAt(turn));
    try {
      for (const [turn, offset] of offsets.entries()) {
        reading.push(readAt(turn + READS_AHEAD));
        const found = await reading.shift();
        expectEqualPages(MAIN_BLOCK, offset, found as Buffer, contents(workload, offset, wanted));
      }
    } finally {
      await Promise.allSettled(reading);
    }
  } finally {
    await file.close();
  }
}

/** Pieces that are read at once: as many as Node has threads for files. */
const READS_AHEAD = 4;

/**
 * Opens an image so that reading it leaves nothing in the page cache. Gigabytes of cache that come and go with every check would
 * take more time than the comparison, and the next run would find the machine's free memory gone back to its host.
 */
async function openDirect(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_DIRECT);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
    return open(path, 'r');
  }
}

// TypeScript has it in the browsers' library only.
declare const WebAssembly: { Memory: new (size: { initial: number }) => { buffer: ArrayBuffer } };

/** Buffers of a piece each that lie where direct I/O wants them: of all of Node's memory, WebAssembly's begins with a page. */
function alignedBuffers(count: number): Buffer[] {
  const { buffer } = new WebAssembly.Memory({ initial: (count * PIECE) / 2 ** 16 });
  return Array.from({ length: count }, (_, index) => Buffer.from(buffer, index * PIECE, PIECE));
}

/** Reads up to a piece; behind the end of the file there are zeros, as a loader takes them. */
async function readPiece(file: FileHandle, buffer: Buffer, at: number, most: number): Promise<Buffer> {
  const bytes = buffer.subarray(0, Math.min(PIECE, most));
  let done = 0;
  // Only the end of the file is not on a page's border.
  while (done < bytes.length && done % PAGE === 0) {
    const { bytesRead } = await file.read(bytes, done, bytes.length - done, at + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return bytes.fill(0, done);
}

function compareOther(image: Image, saved: ImageBlock, guest: Qemu, live: LiveBlock): void {
  const reader = new RamReader(guest);
  try {
    for (let offset = 0; offset < live.used; offset += PIECE) {
      const length = Math.min(PIECE, live.used - offset);
      const [found, wanted] = [Buffer.alloc(length), Buffer.alloc(length)];
      image.read(saved, offset, found);
      reader.read(live, offset, wanted);
      expectEqualPages(live.name, offset, found, wanted);
    }
  } finally {
    reader.close();
  }
}

/** Throws and names the first page of `block` that differs; `offset` is where both buffers lie in it. */
export function expectEqualPages(block: string, offset: number, found: Buffer, wanted: Buffer): void {
  if (found.equals(wanted)) return;
  for (let at = 0; at < wanted.length; at += PAGE)
    if (found.compare(wanted, at, at + PAGE, at, at + PAGE) !== 0)
      throw new Error(`${block}: page ${(offset + at) / PAGE} is not what the guest has`);
  throw new Error(`${block}: ${found.length} bytes at ${offset} instead of ${wanted.length}`);
}
