import type { Cursor, Reading } from './cursor.ts';
import {
  CAPABILITY_IGNORE_SHARED,
  MAX_BLOCKS,
  MAX_RAM_BYTES,
  PAGE_BYTES,
  RAM_EOS,
  RAM_MEM_SIZE,
  RAM_SECTION_NAME,
  RAM_SECTION_VERSION,
  SECTION,
} from './format.ts';
import { invalid } from './invalid.ts';
import { type PlacedBlock, readBlock } from './read-block.ts';
import type { Configuration } from './read-head.ts';

/** The ram section that holds the blocks. */
export interface RamSection {
  /** Its id. */
  id: number;
  /** Sum of the blocks' used lengths. */
  totalLength: number;
  /** The blocks in the order of the stream. */
  blocks: PlacedBlock[];
  /** Where the stream goes on behind the last block's pages. */
  tailOffset: number;
}

/** Reads the ram section with all blocks and bitmaps, up to and with its footer. */
export function* readRam(cursor: Cursor, configuration: Configuration): Reading<RamSection> {
  const id = yield* readSectionHeader(cursor);
  const totalLength = yield* readTotal(cursor);
  const ignoreShared = configuration.capabilities.includes(CAPABILITY_IGNORE_SHARED);
  const blocks: PlacedBlock[] = [];
  let remaining = totalLength;
  while (remaining > 0) {
    if (blocks.length === MAX_BLOCKS) {
      throw invalid(`The image has more than ${MAX_BLOCKS} RAM blocks`, cursor.position, 'block name length');
    }
    const block = yield* readBlock(cursor, remaining, ignoreShared);
    if (blocks.some(({ name }) => name === block.name)) {
      throw invalid(`Block ${block.name} is there twice`, block.headerOffset, 'block name');
    }
    blocks.push(block);
    remaining -= block.usedLength;
  }
  const tailOffset = cursor.position;
  yield* readEndOfRam(cursor, id);
  return { id, totalLength, blocks, tailOffset };
}

/** Reads the end-of-section record and the footer that close each section of the ram handler. */
export function* readEndOfRam(cursor: Cursor, id: number): Reading<void> {
  const record = yield* cursor.be64('RAM flags');
  if (record !== RAM_EOS) {
    throw cursor.wrong(`Expected the end of the ram section, found a RAM record 0x${record.toString(16)}`);
  }
  if ((yield* cursor.u8('section footer')) !== SECTION.FOOTER) {
    throw cursor.wrong('The ram section has no footer');
  }
  yield* expectRamId(cursor, id, 'section footer id');
}

/** Reads a section id that must be the ram section's. */
export function* expectRamId(cursor: Cursor, id: number, field: string): Reading<void> {
  const found = yield* cursor.be32(field);
  if (found !== id) throw cursor.wrong(`Section id ${found} is not that of the ram section, ${id}`);
}

/** Reads the header of the first section, which must be ram's: as START, or as a FULL section, which QEMU loads too. */
function* readSectionHeader(cursor: Cursor): Reading<number> {
  const type = yield* cursor.u8('section type');
  if (type !== SECTION.START && type !== SECTION.FULL) {
    throw cursor.wrong(`Section type 0x${type.toString(16)} cannot begin the ram section`);
  }
  const id = yield* cursor.be32('section id');
  const name = yield* cursor.shortText('section name');
  if (name !== RAM_SECTION_NAME) {
    const reason = 'stands before RAM (as with virtio-mem or vfio), which is not supported';
    throw cursor.wrong(`The state of device "${name}" ${reason}`);
  }
  const instance = yield* cursor.be32('instance id');
  if (instance !== 0) throw cursor.wrong(`The ram section has instance ${instance}, not 0`);
  const version = yield* cursor.be32('section version');
  if (version === RAM_SECTION_VERSION) return id;
  throw cursor.wrong(`The ram section has version ${version}, not ${RAM_SECTION_VERSION}`);
}

function* readTotal(cursor: Cursor): Reading<number> {
  const record = yield* cursor.be64('MEM_SIZE');
  const flags = record % PAGE_BYTES;
  const total = record - flags;
  if (flags !== RAM_MEM_SIZE) {
    throw cursor.wrong(`The ram section begins with RAM flags 0x${flags.toString(16)}, not MEM_SIZE`);
  }
  if (total === 0 || total > MAX_RAM_BYTES) {
    throw cursor.wrong(`A total of ${total} bytes of RAM is not possible (limit 32 TiB)`);
  }
  return total;
}
