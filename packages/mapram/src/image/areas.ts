import { highestSetPage, lowestSetPage } from './bitmap.ts';
import { PAGE_BYTES } from './format.ts';
import { invalid } from './invalid.ts';
import type { PlacedBlock } from './read-block.ts';

/** A range of the file, what stands in it, and the field that put it there. */
interface Area {
  start: number;
  end: number;
  what: string;
  field: string;
  fieldOffset: number;
}

/**
 * Refuses a bitmap inside a pages area, unless QEMU would have put it there: the bitmap that says which pages count cannot be
 * believed where it may be pages itself.
 */
function checkMovedBitmaps(blocks: readonly PlacedBlock[]): void {
  for (const { name, headerEnd, bitmapOffset, bitmap } of blocks) {
    if (bitmapOffset === headerEnd) continue;
    const end = bitmapOffset + bitmap.length;
    const around = blocks.find(
      ({ pagesOffset, usedLength }) => bitmapOffset < pagesOffset + usedLength && end > pagesOffset,
    );
    if (around === undefined) continue;
    const message = `The bitmap of block ${name} at ${bitmapOffset} lies in the pages area of block ${around.name}`;
    throw invalid(message, headerEnd - 16, 'bitmap_offset');
  }
}

/**
 * Refuses an image in which two things claim the same bytes: head, block records, bitmaps, pages that are set, and tail.
 *
 * A block's pages count from its first set page to its last. Beyond those nothing of the pages area is ever read, so other things
 * may stand there, except for bitmaps that stand elsewhere than QEMU puts them.
 *
 * @param blocks in the order of the stream.
 * @param tail the range of everything behind the last block's pages.
 */
export function checkAreas(
  base: number,
  blocks: readonly PlacedBlock[],
  tail: { start: number; end: number },
): void {
  checkMovedBitmaps(blocks);
  const areas = areasOf(base, blocks, tail);
  areas.sort((a, b) => a.start - b.start);
  for (const [index, area] of areas.entries()) {
    const next = areas[index + 1];
    if (next === undefined || next.start >= area.end) continue;
    const culprit = area.fieldOffset > next.fieldOffset ? area : next;
    const range = `from ${next.start} to ${Math.min(area.end, next.end)}`;
    throw invalid(`${area.what} and ${next.what} overlap ${range}`, culprit.fieldOffset, culprit.field);
  }
}

/** All non-empty areas. What the position in the stream places is blamed on the pages offset that led there. */
function areasOf(base: number, blocks: readonly PlacedBlock[], tail: { start: number; end: number }): Area[] {
  let led = { field: 'pages_offset', fieldOffset: base };
  const firstRecord = blocks[0]?.headerOffset ?? tail.start;
  const areas: Area[] = [{ start: base, end: firstRecord, what: 'the head of the stream', ...led }];
  for (const block of blocks) {
    const { name, headerOffset, headerEnd, bitmapOffset, pagesOffset, bitmap } = block;
    const placedBitmap = { field: 'bitmap_offset', fieldOffset: headerEnd - 16 };
    const placedPages = { field: 'pages_offset', fieldOffset: headerEnd - 8 };
    const bitmapEnd = bitmapOffset + bitmap.length;
    const pagesStart = pagesOffset + lowestSetPage(bitmap) * PAGE_BYTES;
    const pagesEnd = pagesOffset + (highestSetPage(bitmap) + 1) * PAGE_BYTES;
    areas.push({ start: headerOffset, end: headerEnd, what: `the record of block ${name}`, ...led });
    areas.push({ start: bitmapOffset, end: bitmapEnd, what: `the bitmap of block ${name}`, ...placedBitmap });
    if (block.setPages > 0)
      areas.push({ start: pagesStart, end: pagesEnd, what: `the pages of block ${name}`, ...placedPages });
    led = placedPages;
  }
  areas.push({ ...tail, what: 'the tail of the stream', ...led });
  return areas;
}
