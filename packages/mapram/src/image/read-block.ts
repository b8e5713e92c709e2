import { countSetPages, hasTailBits, highestSetPage } from './bitmap.ts';
import type { Cursor, Reading } from './cursor.ts';
import { BLOCK_HEADER_VERSION, bitmapBytes, PAGE_BYTES, PAGES_ALIGNMENT } from './format.ts';
import { invalid } from './invalid.ts';
import { readShortName } from './read-head.ts';
import type { ImageBlock } from './types.ts';

/** A block and where its record ends, which is where QEMU puts the bitmap. */
export interface PlacedBlock extends ImageBlock {
  headerEnd: number;
}

/** What stands in a block's record. */
type BlockRecord = Omit<PlacedBlock, 'bitmap' | 'setPages'>;

/** What is known when a block's record is read. */
export interface BlockContext {
  /** Bytes of RAM that the ram section's total leaves for this block and those behind it. */
  remaining: number;
  /** Whether records hold guest addresses, which capability x-ignore-shared adds. */
  ignoreShared: boolean;
  /** Where the stream begins. */
  base: number;
}

/** Reads a block's record and its bitmap, and leaves the cursor behind its pages area. */
export function* readBlock(cursor: Cursor, context: BlockContext): Reading<PlacedBlock> {
  const record = yield* readRecord(cursor, context);
  const bitmap = yield* readBitmap(cursor, record, context.base);
  const pagesEnd = record.pagesOffset + record.usedLength;
  if (pagesEnd > cursor.fileLength) throw truncatedPages(record, bitmap, cursor.fileLength);
  cursor.position = pagesEnd;
  return { ...record, bitmap, setPages: countSetPages(bitmap) };
}

function* readRecord(cursor: Cursor, context: BlockContext): Reading<BlockRecord> {
  const headerOffset = cursor.position;
  const name = yield* readShortName(cursor, 'block name');
  const usedLength = yield* readUsedLength(cursor, name, context.remaining);
  if (context.ignoreShared) yield* cursor.be64('GPA');
  const headerVersion = yield* readHeaderVersion(cursor, name);
  const pageSizeOffset = cursor.position;
  const pageSize = yield* cursor.be64('page_size');
  if (pageSize !== PAGE_BYTES) {
    throw invalid(
      `Block ${name} has pages of ${pageSize} bytes, not ${PAGE_BYTES}`,
      pageSizeOffset,
      'page_size',
    );
  }
  const bitmapOffset = yield* cursor.be64('bitmap_offset');
  const pagesOffset = yield* cursor.be64('pages_offset');
  const headerEnd = cursor.position;
  const record = { name, usedLength, headerOffset, headerVersion, headerEnd, bitmapOffset, pagesOffset };
  checkOffsets(record, cursor.fileLength, context);
  return record;
}

function* readUsedLength(cursor: Cursor, name: string, remaining: number): Reading<number> {
  const offset = cursor.position;
  const usedLength = yield* cursor.be64('used_length');
  if (usedLength === 0 || usedLength % PAGE_BYTES !== 0) {
    throw invalid(`Block ${name} has ${usedLength} bytes, which are not whole pages`, offset, 'used_length');
  }
  if (usedLength > remaining) {
    const message = `Block ${name} has ${usedLength} bytes where the section's total leaves ${remaining}`;
    throw invalid(message, offset, 'used_length');
  }
  return usedLength;
}

function* readHeaderVersion(cursor: Cursor, name: string): Reading<number> {
  const offset = cursor.position;
  const version = yield* cursor.be32('header version');
  if (version > BLOCK_HEADER_VERSION) {
    throw invalid(`Block ${name} has header version ${version}; 0 and 1 are known`, offset, 'header version');
  }
  return version;
}

function checkOffsets(record: BlockRecord, fileLength: number, context: BlockContext): void {
  const { name, usedLength, headerOffset, headerEnd, bitmapOffset, pagesOffset } = record;
  if (bitmapOffset === 0 && pagesOffset === 0 && context.ignoreShared) {
    const message = `Block ${name} is shared memory that was left out of the image (x-ignore-shared), so the image is not whole`;
    throw invalid(message, headerEnd - 16, 'bitmap_offset');
  }
  const bitmapEnd = bitmapOffset + bitmapBytes(usedLength);
  const hint = movedHint(record, context.base);
  if (bitmapOffset < context.base || bitmapEnd > fileLength) {
    const message = `The bitmap of block ${name}, from ${bitmapOffset} to ${bitmapEnd}, is not inside the image${hint}`;
    throw invalid(message, headerEnd - 16, 'bitmap_offset');
  }
  if (bitmapOffset < headerEnd && bitmapEnd > headerOffset) {
    const message = `The bitmap of block ${name} at ${bitmapOffset} overlaps the block's own record${hint}`;
    throw invalid(message, headerEnd - 16, 'bitmap_offset');
  }
  if (pagesOffset < context.base || pagesOffset % PAGE_BYTES !== 0) {
    const message = `The pages of block ${name} at ${pagesOffset} are outside the image or not aligned to ${PAGE_BYTES} bytes${hint}`;
    throw invalid(message, headerEnd - 8, 'pages_offset');
  }
}

/** For the message: whether the offsets would fit if the image began elsewhere in its file, as they do when it was copied. */
function movedHint({ usedLength, headerEnd, bitmapOffset, pagesOffset }: BlockRecord, base: number): string {
  const shift = bitmapOffset - headerEnd;
  const gap = pagesOffset - (bitmapOffset + bitmapBytes(usedLength));
  if (shift === 0 || base + shift < 0 || gap < 0 || gap >= PAGES_ALIGNMENT) return '';
  return `; it would fit an image at ${base + shift}: was this one copied to another offset? Its offsets count from the start of the file`;
}

function* readBitmap(cursor: Cursor, record: BlockRecord, base: number): Reading<Uint8Array> {
  const { name, usedLength, bitmapOffset, headerEnd } = record;
  // Not copied, for it has 32 MiB in an image of 1 TiB.
  const bitmap = yield* cursor.readAt(bitmapOffset, bitmapBytes(usedLength));
  if (bitmapOffset !== headerEnd) yield* checkMovedBitmap(cursor, record, bitmap, base);
  if (hasTailBits(bitmap, usedLength / PAGE_BYTES)) {
    throw invalid(`The bitmap of block ${name} names pages beyond the block`, bitmapOffset, 'bitmap');
  }
  return bitmap;
}

/**
 * A bitmap may stand anywhere, so a damaged `bitmap_offset` would pass for another bitmap. It shows where QEMU would have put the
 * bitmap, right behind the header: what stands there must be a copy, or nothing, and nothing only where the two places do
 * not overlap.
 */
function* checkMovedBitmap(
  cursor: Cursor,
  record: BlockRecord,
  bitmap: Uint8Array,
  base: number,
): Reading<void> {
  const { name, headerEnd, bitmapOffset, pagesOffset } = record;
  const usualEnd = headerEnd + bitmap.length;
  const limit = Math.min(usualEnd, cursor.fileLength, pagesOffset > headerEnd ? pagesOffset : usualEnd);
  if (limit <= headerEnd) return;
  const usual = yield* cursor.readAt(headerEnd, limit - headerEnd);
  if (usual.every((byte, index) => byte === bitmap[index])) return;
  const overlaps = bitmapOffset < limit && bitmapOffset + bitmap.length > headerEnd;
  if (!overlaps && usual.every((byte) => byte === 0)) return;
  const message = `bitmap_offset of block ${name} leads to ${bitmapOffset}, while another bitmap stands behind its header${movedHint(record, base)}`;
  throw invalid(message, headerEnd - 16, 'bitmap_offset');
}

function truncatedPages(record: BlockRecord, bitmap: Uint8Array, fileLength: number): Error {
  const { name, usedLength, pagesOffset } = record;
  const highest = highestSetPage(bitmap);
  if (highest < 0) {
    const end = pagesOffset + usedLength;
    const message = `The file is truncated: it has ${fileLength} bytes, and the pages of block ${name} reach up to ${end}`;
    return invalid(message, fileLength, 'pages');
  }
  const lastPage = pagesOffset + highest * PAGE_BYTES;
  const message = `The file is truncated: it has ${fileLength} bytes, and the last page of block ${name} lies at ${lastPage}`;
  return invalid(message, lastPage, 'pages');
}
