import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { expectEqualPages } from './check-image.ts';
import { MAIN_BLOCK, type MemoryAt } from './guest-memory.ts';
import { contents, hasData, PIECE, type Workload } from './workload.ts';

/**
 * Compares all of a restored guest's RAM with what it must hold. Holes are not read where the file takes no more than its data does:
 * a guest of 1 TiB has hardly anything else.
 *
 * @throws {Error} at the first difference.
 */
export function checkMemory(workload: Workload, { path, start }: MemoryAt): void {
  const file = openSync(path, 'r');
  try {
    const isAllData = start === 0 && fstatSync(file).blocks * 512 <= workload.dataBytes;
    const [found, made, zeros] = [Buffer.alloc(PIECE), Buffer.alloc(PIECE), Buffer.alloc(PIECE)];
    for (let offset = 0; offset < workload.bytes; offset += PIECE) {
      const isZero = !hasData(workload, offset);
      if (isZero && isAllData) continue;
      const wanted = isZero ? zeros.subarray(0, workload.bytes - offset) : contents(workload, offset, made);
      const bytes = found.subarray(0, wanted.length);
      readFully(file, bytes, start + offset);
      expectEqualPages(MAIN_BLOCK, offset, bytes, wanted);
    }
  } finally {
    closeSync(file);
  }
}

function readFully(file: number, bytes: Buffer, at: number): void {
  for (let done = 0; done < bytes.length; ) {
    const got = readSync(file, bytes, done, bytes.length - done, at + done);
    if (got === 0) throw new Error(`the guest's memory ends at ${at + done}`);
    done += got;
  }
}
