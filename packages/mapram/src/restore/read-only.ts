import { MapramError } from '../errors.ts';
import { compareMemory, type GuestMemory } from '../native.ts';
import { imageSource } from './fill.ts';
import type { Reading } from './restoring.ts';

/**
 * Compares memory that is mapped for reading only with the image, before anything is written. It is a file that QEMU promised not to
 * change (an NVDIMM that many guests share, for example): restoring must leave it alone, so it has to be right already.
 *
 * @throws {MapramError} E_GUEST_MISMATCH naming block and file; E_GUEST_UNSUPPORTED if QEMU's own loader would write to it.
 */
export async function requireEqualReadOnlyMemory(
  reading: Reading,
  memory: GuestMemory,
  method: 'fill' | 'qemu',
): Promise<void> {
  const { blocks } = reading.opened.image;
  const { how, job } = reading;
  const readOnly = memory.regions().filter(({ writable }) => !writable);
  if (readOnly.length === 0) return;
  const nameOf = (block: number): string => blocks[block]?.name ?? '';
  const stored = readOnly.find(({ block }) => (blocks[block]?.setPages ?? 0) > 0);
  if (method === 'qemu' && stored !== undefined) {
    const reason = `QEMU cannot load this image by itself: it would write to RAM block ${nameOf(stored.block)}, which is mapped for reading only; use method fill`;
    throw new MapramError('E_GUEST_UNSUPPORTED', reason, { path: stored.path });
  }
  const { difference } = await job.run(compareMemory(imageSource(reading), memory, how.engine, how));
  if (difference === undefined) return;
  const { block, offset } = difference;
  const { path } = readOnly.find((region) => region.block === block) ?? {};
  throw new MapramError(
    'E_GUEST_MISMATCH',
    `The image does not fit: RAM block ${nameOf(block)} is mapped for reading only${path === undefined ? '' : ` from ${path}`}, and what it holds at ${offset} is not what the image has there`,
    { path, field: 'memory' },
  );
}
