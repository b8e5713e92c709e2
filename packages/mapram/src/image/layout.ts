import { MapramError } from '../errors.ts';
import {
  BLOCK_HEADER_BYTES,
  bitmapBytes,
  CAPABILITY_MAPPED_RAM,
  MAX_BLOCK_NAME_BYTES,
  MAX_BLOCKS,
  MAX_MACHINE_NAME_BYTES,
  MAX_RAM_BYTES,
  PAGE_BYTES,
  PAGES_ALIGNMENT,
} from './format.ts';
import { streamHead } from './stream.ts';
import { encodeText, isPrintable } from './text.ts';
import type { BlockLayout } from './types.ts';

/** A RAM block to be saved. */
export interface BlockSize {
  /** The block's name (idstr), 1 to 255 bytes. */
  name: string;
  /** Bytes of RAM in it; a multiple of 4096, above 0. */
  usedLength: number;
}

/** What an image is made of. */
export interface LayoutOptions {
  /** Versioned machine type, such as `pc-q35-10.0`. */
  machine: string;
  /** The RAM blocks in QEMU's order. */
  blocks: readonly BlockSize[];
  /** Where the stream shall begin in the file; 0 if not given. */
  base?: number;
}

/** Where everything in an image goes; all offsets count from the start of the file. */
export interface Layout {
  /** Where the stream begins. */
  base: number;
  /** Versioned machine type. */
  machine: string;
  /** The stream from its magic to the first block's record. */
  head: Uint8Array;
  /** The blocks, in the order of the stream. */
  blocks: BlockLayout[];
  /** Where the stream goes on behind the last block's pages. */
  tailOffset: number;
}

/**
 * Lays out an image exactly as QEMU does: each bitmap right behind its block's header, each pages area at the next multiple of
 * 1 MiB of the file, and the next header right behind the pages area.
 *
 * @throws MapramError E_USAGE if the machine or a block cannot be written in the format.
 */
export function layoutImage(options: LayoutOptions): Layout {
  const { machine, base = 0 } = options;
  checkGuest(machine, options.blocks);
  if (!Number.isSafeInteger(base) || base < 0) {
    throw unusable(`The base offset ${base} is no file offset`, 'base');
  }
  const head = streamHead(machine, [CAPABILITY_MAPPED_RAM], options.blocks).toBytes();
  let position = base + head.length;
  const blocks = options.blocks.map(({ name, usedLength }): BlockLayout => {
    const headerOffset = position;
    const bitmapOffset = headerOffset + 1 + encodeText(name).length + 8 + BLOCK_HEADER_BYTES;
    const bitmapEnd = bitmapOffset + bitmapBytes(usedLength);
    const pagesOffset = Math.ceil(bitmapEnd / PAGES_ALIGNMENT) * PAGES_ALIGNMENT;
    position = pagesOffset + usedLength;
    return { name, usedLength, headerOffset, bitmapOffset, pagesOffset };
  });
  return { base, machine, head, blocks, tailOffset: position };
}

/** Refuses a machine name and blocks that the format cannot hold, or that our own reader would refuse. */
export function checkGuest(machine: string, blocks: readonly BlockSize[]): void {
  if (!isPrintable(machine) || encodeText(machine).length > MAX_MACHINE_NAME_BYTES) {
    const what = `The machine name ${JSON.stringify(machine)}`;
    throw unusable(`${what} is empty, unprintable or too long`, 'machine');
  }
  if (blocks.length === 0 || blocks.length > MAX_BLOCKS) {
    throw unusable(`An image holds 1 to ${MAX_BLOCKS} RAM blocks, not ${blocks.length}`, 'blocks');
  }
  const names = new Set<string>();
  let total = 0;
  for (const { name, usedLength } of blocks) {
    checkName(name);
    if (names.has(name)) throw unusable(`RAM block ${name} is there twice`, 'name');
    names.add(name);
    total += usedLength;
    if (usedLength > 0 && usedLength % PAGE_BYTES === 0 && total <= MAX_RAM_BYTES) continue;
    const fault = 'not whole pages, or beyond 32 TiB in all';
    throw unusable(`RAM block ${name} has ${usedLength} bytes: ${fault}`, 'usedLength');
  }
}

function checkName(name: string): void {
  const { length } = encodeText(name);
  if (length === 0 || length > MAX_BLOCK_NAME_BYTES) {
    const limits = `1 to ${MAX_BLOCK_NAME_BYTES} are possible`;
    throw unusable(`A RAM block has a name of ${length} bytes; ${limits}`, 'name');
  }
  if (isPrintable(name)) return;
  const message = `The RAM block name ${JSON.stringify(name)} holds characters that cannot be printed`;
  throw unusable(message, 'name');
}

/** The error for what the format cannot hold. */
export function unusable(message: string, field: string): MapramError {
  return new MapramError('E_USAGE', message, { field });
}
