import { closeSync, openSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { startQemu } from './guest/qemu.fixture.ts';
import {
  compareMemory,
  GuestMemory,
  lengthInBytes,
  reopenForReading,
  restoreMemory,
  UnixConnection,
} from './native.ts';

/** Numbers that are no open descriptor; the last one was closed just now. */
function notOpen(): number[] {
  const closed = openSync('/dev/null', 'r');
  closeSync(closed);
  return [-1, -(2 ** 31), 2 ** 31 - 1, closed];
}

describe('a number that is no open descriptor is E_USAGE', () => {
  const usage = { code: 'E_USAGE' };

  it('as the image of a job', async () => {
    const memory = await GuestMemory.ofNamed([], true);
    const how = { queueDepth: 1, threads: 1, chunkBytes: 2 ** 20, copy: 'auto' } as const;
    const plan = { extents: [], splits: [] };
    for (const fd of notOpen()) {
      const image = { fd, path: '/image', direct: false, areas: [], bitmaps: [] };
      await expect(restoreMemory(image, memory, plan, 'blocking', how).run()).rejects.toMatchObject(usage);
      await expect(compareMemory(image, memory, 'blocking', how).run()).rejects.toMatchObject(usage);
    }
    memory.close();
  });

  it('as a file to ask about or to open anew', async () => {
    for (const fd of notOpen()) {
      await expect(lengthInBytes(fd)).rejects.toMatchObject(usage);
      await expect(reopenForReading(fd, '/image', false)).rejects.toMatchObject(usage);
    }
  });

  it('as memory', async () => {
    for (const fd of notOpen()) {
      const open = GuestMemory.ofNamed([{ name: 'ram', length: 4096, fd }], false);
      await expect(open).rejects.toMatchObject(usage);
    }
  });

  it('as a descriptor to send', async () => {
    const qemu = await startQemu();
    const connection = UnixConnection.connect(qemu.socket);
    for (const fd of notOpen()) {
      expect(() => connection.sendWithFds(Buffer.from('{}'), [fd])).toThrow(expect.objectContaining(usage));
    }
    connection.close();
  });
});
