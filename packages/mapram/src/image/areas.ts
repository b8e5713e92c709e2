import { highestSetPage, lowestSetPage } from './bitmap.ts';
import { PAGE_BYTES } from './format.ts';
import { invalid } from './invalid.ts';
import { bitmapField, type PlacedBlock, pagesField } from './read-block.ts';

interface Range {
  start: number;
  end: number;
}

/** A range of the file, what stands in it, and the field that put it there. */
interface Area extends Range {
  what: string;
  by: [offset: number, field: string];
}

/**
 * Refuses a bitmap inside a pages area, unless QEMU would have put it there: the bitmap that says which pages count cannot be
 * believed where it may be pages itself.
 */
function checkMovedBitmaps(blocks: readonly PlacedBlock[]): void {
  for (const block of blocks) {
    const { name, headerEnd, bitmapOffset, bitmap } = block;
    if (bitmapOffset === headerEnd) continue;
    const end = bitmapOffset + bitmap.length;
    const around = blocks.find(
      ({ pagesOffset, usedLength }) => bitmapOffset < pagesOffset + usedLength && end > pagesOffset,
    );
    if (around === undefined) continue;
    const message = `The bitmap of block ${name} at ${bitmapOffset} lies in the pages area of block ${around.name}`;
    throw invalid(message, ...bitmapField(block));
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
export function checkAreas(base: number, blocks: readonly PlacedBlock[], tail: Range): void {
  checkMovedBitmaps(blocks);
  const areas = areasOf(base, blocks, tail);
  areas.sort((a, b) => a.start - b.start);
  for (const [index, area] of areas.entries()) {
    const next = areas[index + 1];
    if (next === undefined || next.start >= area.end) continue;
    const culprit = area.by[0] > next.by[0] ? area : next;
    const range = `from ${next.start} to ${Math.min(area.end, next.end)}`;
    throw invalid(`${area.what} and ${next.what} overlap ${range}`, ...culprit.by);
  }
}

/** All non-empty areas. What the position in the stream places is blamed on the pages offset that led there. */
function areasOf(base: number, blocks: readonly PlacedBlock[], tail: Range): Area[] {
  let led: Area['by'] = [base, 'pages_offset'];
  const areas: Area[] = [];
  const add = (start: number, end: number, what: string, by: Area['by']): void => {
    areas.push({ start, end, what, by });
  };
  add(base, blocks[0]?.headerOffset ?? tail.start, 'the head of the stream', led);
  for (const block of blocks) {
    const { name, headerOffset, headerEnd, bitmapOffset, pagesOffset, bitmap } = block;
    const pagesStart = pagesOffset + lowestSetPage(bitmap) * PAGE_BYTES;
    const pagesEnd = pagesOffset + (highestSetPage(bitmap) + 1) * PAGE_BYTES;
    add(headerOffset, headerEnd, `the record of block ${name}`, led);
    add(bitmapOffset, bitmapOffset + bitmap.length, `the bitmap of block ${name}`, bitmapField(block));
    if (block.setPages > 0) add(pagesStart, pagesEnd, `the pages of block ${name}`, pagesField(block));
    led = pagesField(block);
  }
  add(tail.start, tail.end, 'the tail of the stream', led);
  return areas;
}
