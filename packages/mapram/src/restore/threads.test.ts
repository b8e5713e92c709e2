import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { GuestMemory } from '../native.ts';
import { chooseTransfer } from '../options.ts';
import { threadsToFill } from './threads.ts';

const LENGTH = 1 << 20;
const how = {
  ...chooseTransfer({ channels: 1, queueDepth: 1, engine: 'blocking', direct: false }),
  threads: 3,
  threadsForFreshMemory: 7,
};

describe('threadsToFill', () => {
  const directory = mkdtempSync(join(tmpdir(), 'mapram-threads-'));
  const file = join(directory, 'memory');

  afterEach(() => rmSync(directory, { recursive: true, force: true }));

  it('takes all processors only for a shared file without pages', async () => {
    writeFileSync(file, '');
    truncateSync(file, LENGTH);
    const memory = GuestMemory.ofNamed([{ name: 'ram', length: LENGTH, file }], true);
    expect(await threadsToFill(memory, LENGTH, how)).toBe(7);
    writeFileSync(file, Buffer.alloc(LENGTH, 1), { flag: 'r+' });
    expect(await threadsToFill(memory, LENGTH, how)).toBe(3);
    memory.close();
    const own = GuestMemory.ofNamed(
      [{ name: 'ram', length: 4096, pid: process.pid, address: heapAddress() }],
      true,
    );
    expect(await threadsToFill(own, LENGTH, how)).toBe(3);
    own.close();
  });
});

/** Where private memory of this process is. */
function heapAddress(): number {
  const [, start] = /^([0-9a-f]+)-.*\[heap\]$/m.exec(readFileSync('/proc/self/maps', 'latin1')) ?? [];
  return Number.parseInt(start ?? '', 16);
}
