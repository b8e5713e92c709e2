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
  const own = new Map(guest.blocks.map((block) => [block.name, block]));
  requireSameNames(image.blocks, own);
  const blocks: RamBlock[] = [];
  const resized: string[] = [];
  for (const { name, usedLength } of image.blocks) {
    const block = own.get(name) as RamBlock;
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

/** @throws {MapramError} E_GUEST_MISMATCH if a block is in one of them only. */
export function requireSameNames(
  imageBlocks: readonly ImageBlock[],
  memory: ReadonlyMap<string, unknown>,
): void {
  const names = new Set(imageBlocks.map(({ name }) => name));
  const missing = [...names].filter((name) => !memory.has(name));
  if (missing.length > 0) {
    throw mismatch(`it has RAM block ${missing.join(', ')}, which is not there`, 'blocks');
  }
  const extra = [...memory.keys()].filter((name) => !names.has(name));
  if (extra.length > 0) throw mismatch(`it lacks RAM block ${extra.join(', ')}`, 'blocks');
}

/** The error for an image that is not of the memory at hand. */
export function mismatch(reason: string, field: string): MapramError {
  return new MapramError('E_GUEST_MISMATCH', `The image does not fit: ${reason}`, { field });
}
