import { createHash, randomFillSync } from 'node:crypto';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import type { Qmp } from './qmp.ts';

/** A QEMU's process and a connection to it. */
interface RunningQemu {
  pid: number;
  qmp: Qmp;
}

/** A RAM block of a running QEMU, as `x-query-ramblock` has it. */
export interface LiveBlock {
  name: string;
  /** Bytes in use. */
  used: number;
  /** Address in QEMU's process. */
  address: number;
}

/** The migratable blocks in QEMU's order. */
export async function liveBlocks(qemu: RunningQemu): Promise<LiveBlock[]> {
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

  constructor(qemu: RunningQemu) {
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
export async function ramDigests(qemu: RunningQemu): Promise<Record<string, string>> {
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

/**
 * Fills a QEMU's memory from outside with what guests hold (guest/init.c has the same mix): `mebibytes` in all, in equal parts
 * from 32 MiB on of every block that is large enough to be RAM.
 */
export async function fillRam(qemu: RunningQemu, mebibytes: number): Promise<void> {
  const blocks = (await liveBlocks(qemu)).filter(({ used }) => used > 32 << 20);
  const file = openSync(`/proc/${qemu.pid}/mem`, 'r+');
  for (const block of blocks)
    for (let done = 0; done < mebibytes / blocks.length; done++) {
      // Every fourth MiB stays as it is.
      if (done % 4 === 3) continue;
      const piece = mixedPages();
      writeSync(file, piece, 0, piece.length, block.address + ((32 + done) << 20));
    }
  closeSync(file);
}

/** A MiB of random pages, pages of one repeated byte, zero pages, and empty pages with one byte in them. */
function mixedPages(): Buffer {
  const piece = randomFillSync(Buffer.alloc(1 << 20));
  for (let page = 0; page < 256; page++) {
    const bytes = piece.subarray(page * 4096, (page + 1) * 4096);
    if (page % 5 > 1) bytes.fill(page % 5 === 2 ? page : 0);
    if (page % 5 === 4) bytes[(page * 61) % 4096] = 1;
  }
  return piece;
}
