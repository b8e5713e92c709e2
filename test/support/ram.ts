import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import type { Qemu } from './qemu.ts';

/** A RAM block of a running QEMU, as `x-query-ramblock` has it. */
export interface LiveBlock {
  name: string;
  /** Bytes in use. */
  used: number;
  /** Address in QEMU's process. */
  address: number;
}

/** The migratable blocks in QEMU's order. */
export async function liveBlocks(qemu: Qemu): Promise<LiveBlock[]> {
  const table = await qemu.qmp.execute<{ 'human-readable-text': string }>('x-query-ramblock');
  const line = /^\s*(\S+)\s+\d+ [KMG]iB\s+0x\w+\s+0x(\w+)\s+0x\w+\s+0x(\w+)/;
  return table['human-readable-text'].split('\n').flatMap((text) => {
    const found = line.exec(text);
    if (found === null) return [];
    return [
      {
        name: found[1] ?? '',
        used: Number.parseInt(found[2] ?? '', 16),
        address: Number.parseInt(found[3] ?? '', 16),
      },
    ];
  });
}

/** Reads a QEMU's memory from outside; the guest should be paused. Reading allocates pages that were never touched. */
export class RamReader {
  readonly #file: number;

  constructor(qemu: Qemu) {
    this.#file = openSync(`/proc/${qemu.pid}/mem`, 'r');
  }

  /** Fills `buffer` with the block's bytes from `offset` on. */
  read(block: LiveBlock, offset: number, buffer: Buffer): void {
    for (let done = 0; done < buffer.length; ) {
      const got = readSync(this.#file, buffer, done, buffer.length - done, block.address + offset + done);
      if (got === 0) throw new Error(`${block.name}: memory ends at ${offset + done}`);
      done += got;
    }
  }

  close(): void {
    closeSync(this.#file);
  }
}

/** A digest of each block's memory. */
export async function ramDigests(qemu: Qemu): Promise<Record<string, string>> {
  const reader = new RamReader(qemu);
  const digests: Record<string, string> = {};
  for (const block of await liveBlocks(qemu)) {
    const bytes = Buffer.alloc(block.used);
    reader.read(block, 0, bytes);
    digests[block.name] = createHash('sha256').update(bytes).digest('hex');
  }
  reader.close();
  return digests;
}
