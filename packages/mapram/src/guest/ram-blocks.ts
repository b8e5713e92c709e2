import { isDeepStrictEqual } from 'node:util';
import * as v from 'valibot';
import { MapramError } from '../errors.ts';
import type { ExecuteOptions, Monitor } from './monitor.ts';
import { ask } from './queries.ts';

/** A RAM block of a running QEMU. Sizes are in bytes. */
export interface RamBlock {
  /** The name by which streams call it. */
  name: string;
  /** Bytes that the guest uses. */
  usedLength: number;
  /** Bytes that it may grow to; larger than {@link usedLength} only for blocks that QEMU can resize. */
  maxLength: number;
  /** Address in QEMU's process. */
  address: number;
}

/**
 * A line of `x-query-ramblock`: name, page size, offset, used, total, host address, and since QEMU 7.1 ro or rw
 * (QEMU 10.0.2, ram_block_format in system/physmem.c). Names may hold anything, so the line is read from its end.
 */
const LINE =
  /^(.*?)\s*\d+ [KMG]?i?B\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)(?:\s+r[ow])?\s*$/;
const TextSchema = v.object({ 'human-readable-text': v.string() });

/** The RAM blocks that a stream must hold, in the order in which it wants them. */
export async function queryRamBlocks(monitor: Monitor, options?: ExecuteOptions): Promise<RamBlock[]> {
  const answer = await ask(monitor, TextSchema, 'x-query-ramblock', {}, options);
  return parseRamBlocks(answer['human-readable-text']);
}

/**
 * Looks once more whether the guest still has the blocks that were saved: memory can be plugged while it stands.
 *
 * @throws {MapramError} E_GUEST_RAN
 */
export async function requireSameBlocks(
  monitor: Monitor,
  saved: readonly RamBlock[],
  options?: ExecuteOptions,
): Promise<void> {
  if (isDeepStrictEqual(await queryRamBlocks(monitor, options), saved)) return;
  throw new MapramError('E_GUEST_RAN', 'Someone else changed the RAM blocks of the guest while it was saved');
}

/**
 * Reads the table of `x-query-ramblock`. Blocks without a name are QEMU's own and not part of the guest: they are left out.
 *
 * @throws {MapramError} E_QMP for a line that is not understood.
 */
export function parseRamBlocks(text: string): RamBlock[] {
  const [, ...lines] = text.split('\n');
  return lines
    .filter((line) => line.trim() !== '')
    .map(parseLine)
    .filter((block) => block.name !== '');
}

function parseLine(line: string): RamBlock {
  const match = LINE.exec(line);
  const [, name = '', used = '', total = '', address = ''] = match ?? [];
  const block = {
    name: name.trim(),
    usedLength: Number.parseInt(used, 16),
    maxLength: Number.parseInt(total, 16),
    address: Number.parseInt(address, 16),
  };
  if (match === null || !Number.isSafeInteger(block.address) || !Number.isSafeInteger(block.maxLength)) {
    throw new MapramError('E_QMP', `A line of x-query-ramblock is not understood: ${JSON.stringify(line)}`);
  }
  return block;
}
