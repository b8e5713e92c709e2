import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { GuestMemory } from '../native.ts';
import { chooseTransfer } from '../options.ts';
import { threadsToFill } from './fill.ts';

const LENGTH = 1 << 20;
const how = {
  ...(await chooseTransfer({ channels: 1, queueDepth: 1, engine: 'blocking', direct: false, copy: 'auto' })),
  threads: 3,
  threadsForFreshMemory: 7,
};

describe('threadsToFill', () => {
  const directory = mkdtempSync(join(tmpdir(), 'mapram-threads-'));
  const file = join(directory, 'memory');

  afterEach(() => rmSync(directory, { recursive: true, force: true }));

  it('takes all processors only for memory without pages', async () => {
    writeFileSync(file, '');
    truncateSync(file, LENGTH);
    const memory = await GuestMemory.ofNamed([{ name: 'ram', length: LENGTH, file }], true);
    expect(await threadsToFill(memory, LENGTH, how)).toBe(7);
    writeFileSync(file, Buffer.alloc(LENGTH, 1), { flag: 'r+' });
    expect(await threadsToFill(memory, LENGTH, how)).toBe(3);
    memory.close();
  });

  it('counts the pages of private memory too', async () => {
    for (const [{ address, length }, threads] of [
      [privateMemory((present) => present === 1), 3],
      [privateMemory((present) => present < 0.1), 7],
    ] as const) {
      const memory = await GuestMemory.ofNamed([{ name: 'ram', length, pid: process.pid, address }], true);
      expect(await threadsToFill(memory, length, how)).toBe(threads);
      memory.close();
    }
  });
});

/** Private memory of this process that has the wanted share of its pages. */
function privateMemory(isWanted: (present: number) => boolean): { address: number; length: number } {
  const mappings = readFileSync('/proc/self/smaps', 'latin1').matchAll(
    /^([0-9a-f]+)-[0-9a-f]+ rw-p 00000000 00:00 0 *\nSize: +(\d+) kB(?:\n.*?)*?\nRss: +(\d+) kB/gm,
  );
  for (const [, start = '', size, rss] of mappings)
    if (isWanted(Number(rss) / Number(size)))
      return { address: Number.parseInt(start, 16), length: 1024 * Number(size) };
  throw new Error('this process has no such memory');
}
