import type { MapramError } from '../errors.ts';
import { countSetPages, highestSetPage } from './bitmap.ts';
import type { Cursor, Reading } from './cursor.ts';
import { BLOCK_HEADER_VERSION, bitmapBytes, PAGE_BYTES, PAGES_ALIGNMENT } from './format.ts';
import { invalid } from './invalid.ts';
import type { ImageBlock } from './types.ts';

/** A block and where its record ends, which is where QEMU puts the bitmap. */
export interface PlacedBlock extends ImageBlock {
  headerEnd: number;
}

/** What stands in a block's record. */
type BlockRecord = Omit<PlacedBlock, 'bitmap' | 'setPages'>;

/**
 * Reads a block's record and its bitmap, and leaves the cursor behind its pages area.
 *
 * @param remaining bytes of RAM that the ram section's total leaves for this block and those behind it.
 * @param ignoreShared whether records hold guest addresses, which capability x-ignore-shared adds.
 */
export function* readBlock(cursor: Cursor, remaining: number, ignoreShared: boolean): Reading<PlacedBlock> {
  const record = yield* readRecord(cursor, remaining, ignoreShared);
  checkOffsets(cursor, record, ignoreShared);
  const bitmap = yield* readBitmap(cursor, record);
  const pagesEnd = record.pagesOffset + record.usedLength;
  if (pagesEnd > cursor.fileLength) throw truncatedPages(record, bitmap, cursor.fileLength);
  cursor.position = pagesEnd;
  return { ...record, bitmap, setPages: countSetPages(bitmap) };
}

function* readRecord(cursor: Cursor, remaining: number, ignoreShared: boolean): Reading<BlockRecord> {
  const headerOffset = cursor.position;
  const name = yield* cursor.shortText('block name');
  const usedLength = yield* cursor.be64('used_length');
  if (usedLength === 0 || usedLength % PAGE_BYTES !== 0) {
    throw cursor.wrong(`Block ${name} has ${usedLength} bytes, which are not whole pages`);
  }
  if (usedLength > remaining) {
    throw cursor.wrong(`Block ${name} has ${usedLength} bytes where the section's total leaves ${remaining}`);
  }
  if (ignoreShared) yield* cursor.be64('GPA');
  const headerVersion = yield* cursor.be32('header version');
  if (headerVersion > BLOCK_HEADER_VERSION) {
    throw cursor.wrong(`Block ${name} has header version ${headerVersion}; 0 and 1 are known`);
  }
  const pageSize = yield* cursor.be64('page_size');
  if (pageSize !== PAGE_BYTES) {
    throw cursor.wrong(`Block ${name} has pages of ${pageSize} bytes, not ${PAGE_BYTES}`);
  }
  const bitmapOffset = yield* cursor.be64('bitmap_offset');
  const pagesOffset = yield* cursor.be64('pages_offset');
  const headerEnd = cursor.position;
  return { name, usedLength, headerOffset, headerVersion, headerEnd, bitmapOffset, pagesOffset };
}

/** The field that places a block's bitmap, and where it stands. */
export function bitmapField({ headerEnd }: BlockRecord): [offset: number, field: string] {
  return [headerEnd - 16, 'bitmap_offset'];
}

/** The field that places a block's pages, and where it stands. */
export function pagesField({ headerEnd }: BlockRecord): [offset: number, field: string] {
  return [headerEnd - 8, 'pages_offset'];
}

function checkOffsets({ base, fileLength }: Cursor, record: BlockRecord, ignoreShared: boolean): void {
  const { name, usedLength, headerOffset, headerEnd, bitmapOffset, pagesOffset } = record;
  if (bitmapOffset === 0 && pagesOffset === 0 && ignoreShared) {
    const message = `Block ${name} is shared memory that was left out of the image (x-ignore-shared), so the image is not whole`;
    throw invalid(message, ...bitmapField(record));
  }
  const bitmapEnd = bitmapOffset + bitmapBytes(usedLength);
  const hint = movedHint(record, base);
  if (bitmapOffset < base || bitmapEnd > fileLength) {
    const message = `The bitmap of block ${name}, from ${bitmapOffset} to ${bitmapEnd}, is not inside the image${hint}`;
    throw invalid(message, ...bitmapField(record));
  }
  if (bitmapOffset < headerEnd && bitmapEnd > headerOffset) {
    const message = `The bitmap of block ${name} at ${bitmapOffset} overlaps the block's own record${hint}`;
    throw invalid(message, ...bitmapField(record));
  }
  if (pagesOffset < base || pagesOffset % PAGE_BYTES !== 0) {
    const message = `The pages of block ${name} at ${pagesOffset} are outside the image or not aligned to ${PAGE_BYTES} bytes${hint}`;
    throw invalid(message, ...pagesField(record));
  }
}

/** For the message: whether the offsets would fit if the image began elsewhere in its file, as they do when it was copied. */
function movedHint({ usedLength, headerEnd, bitmapOffset, pagesOffset }: BlockRecord, base: number): string {
  const shift = bitmapOffset - headerEnd;
  const gap = pagesOffset - (bitmapOffset + bitmapBytes(usedLength));
  if (shift === 0 || base + shift < 0 || gap < 0 || gap >= PAGES_ALIGNMENT) return '';
  return `; it would fit an image at ${base + shift}: was this one copied to another offset? Its offsets count from the start of the file`;
}

function* readBitmap(cursor: Cursor, record: BlockRecord): Reading<Uint8Array> {
  const { name, usedLength, bitmapOffset, headerEnd } = record;
  // Not copied, for it has 32 MiB in an image of 1 TiB.
  const bitmap = yield* cursor.readAt(bitmapOffset, bitmapBytes(usedLength));
  if (bitmapOffset !== headerEnd) yield* checkMovedBitmap(cursor, record, bitmap);
  if (highestSetPage(bitmap) < usedLength / PAGE_BYTES) return bitmap;
  throw invalid(`The bitmap of block ${name} names pages beyond the block`, bitmapOffset, 'bitmap');
}

/**
 * A bitmap may stand anywhere, so a damaged `bitmap_offset` would pass for another bitmap. It shows where QEMU would have put the
 * bitmap, right behind the header: what stands there must be a copy, or nothing, and nothing only where the two places do
 * not overlap.
 */
function* checkMovedBitmap(cursor: Cursor, record: BlockRecord, bitmap: Uint8Array): Reading<void> {
  const { name, headerEnd, bitmapOffset, pagesOffset } = record;
  const usualEnd = headerEnd + bitmap.length;
  const limit = Math.min(usualEnd, cursor.fileLength, pagesOffset > headerEnd ? pagesOffset : usualEnd);
  if (limit <= headerEnd) return;
  const usual = yield* cursor.readAt(headerEnd, limit - headerEnd);
  if (usual.every((byte, index) => byte === bitmap[index])) return;
  const overlaps = bitmapOffset < limit && bitmapOffset + bitmap.length > headerEnd;
  if (!overlaps && usual.every((byte) => byte === 0)) return;
  const hint = movedHint(record, cursor.base);
  const message = `bitmap_offset of block ${name} leads to ${bitmapOffset}, while another bitmap stands behind its header${hint}`;
  throw invalid(message, ...bitmapField(record));
}

function truncatedPages(record: BlockRecord, bitmap: Uint8Array, fileLength: number): MapramError {
  const { name, usedLength, pagesOffset } = record;
  const highest = highestSetPage(bitmap);
  const lastPage = pagesOffset + highest * PAGE_BYTES;
  const [offset, what] =
    highest < 0
      ? [fileLength, `the pages of block ${name} reach up to ${pagesOffset + usedLength}`]
      : [lastPage, `the last page of block ${name} lies at ${lastPage}`];
  return invalid(`The file is truncated: it has ${fileLength} bytes, and ${what}`, offset, 'pages');
}
