import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { memoryDirectory } from '../test/support/paths.ts';
import { withCleanup } from './with-cleanup.ts';

const PIECE = Buffer.alloc(4 << 20, 0xff);

/**
 * Uses `bytes` of memory and frees it again. On a virtual machine, memory that was free for a while has gone back to the host,
 * and fetching it costs many times what is measured: whoever fills fresh memory next shall find it here.
 */
export function warmHostMemory(bytes: number): Promise<void> {
  return withCleanup(async (cleanup) => {
    const file = openSync(join(memoryDirectory(cleanup), 'warm'), 'wx');
    for (let at = 0; at < bytes; at += PIECE.length)
      writeSync(file, PIECE, 0, Math.min(PIECE.length, bytes - at));
    closeSync(file);
  });
}
