import { MapramError } from '../errors.ts';
import type { WaitingGuest } from '../guest/incoming.ts';
import type { RamBlock } from '../guest/ram-blocks.ts';
import type { Image, ImageBlock } from '../image/index.ts';

/** The guest's block for each block of the image, as long as the image has it. */
export interface Matched {
  /** Blocks in the image's order; their used length is the image's. */
  blocks: RamBlock[];
  /** Names of the blocks that QEMU has to resize; only a stream without pages makes it do so. */
  resized: string[];
}

/**
 * Compares the image with the QEMU that is to hold it: QEMU's own loader accepts a missing block and a wrong length silently.
 *
 * @throws {MapramError} E_GUEST_MISMATCH naming what differs.
 */
export function matchGuest(image: Image, guest: WaitingGuest): Matched {
  if (image.machine !== guest.machine) {
    throw mismatch(`it is of a ${image.machine}, and QEMU's machine is a ${guest.machine}`, 'machine');
  }
  const blocks: RamBlock[] = [];
  const resized: string[] = [];
  for (const [{ name, usedLength }, block] of pairBlocks(image.blocks, guest.blocks)) {
    blocks.push({ ...block, usedLength });
    if (usedLength === block.usedLength) continue;
    const canResize = block.maxLength > block.usedLength;
    if (!canResize || usedLength > block.maxLength) {
      const limit = canResize ? `at most ${block.maxLength}` : `${block.usedLength}`;
      throw mismatch(`RAM block ${name} has ${usedLength} bytes in it, and ${limit} in QEMU`, 'usedLength');
    }
    resized.push(name);
  }
  return { blocks, resized };
}

/**
 * Each block of the image with the one of the memory that has its name.
 *
 * @throws {MapramError} E_GUEST_MISMATCH if a block is in one of them only.
 */
export function pairBlocks<T extends { name: string }>(
  blocks: readonly ImageBlock[],
  memory: readonly T[],
): [ImageBlock, T][] {
  const own = new Map(memory.map((block) => [block.name, block]));
  const missing = blocks.filter(({ name }) => !own.has(name)).map(({ name }) => name);
  if (missing.length > 0) {
    throw mismatch(`it has RAM block ${missing.join(', ')}, which is not there`, 'blocks');
  }
  const pairs = blocks.map((block): [ImageBlock, T] => [block, own.get(block.name) as T]);
  for (const { name } of blocks) own.delete(name);
  if (own.size > 0) throw mismatch(`it lacks RAM block ${[...own.keys()].join(', ')}`, 'blocks');
  return pairs;
}

/** The error for an image that is not of the memory at hand. */
export function mismatch(reason: string, field: string): MapramError {
  return new MapramError('E_GUEST_MISMATCH', `The image does not fit: ${reason}`, { field });
}
