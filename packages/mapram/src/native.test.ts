import { closeSync, openSync } from 'node:fs';
import { describe, expect, it, vi } from 'vitest';
import { MapramError } from './errors.ts';
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

describe('of two copies of mapram in one process', () => {
  it('each one fails with errors of its own', async () => {
    const closedMemory = async (native: typeof import('./native.ts')): Promise<GuestMemory> => {
      const memory = await native.GuestMemory.ofNamed([], false);
      memory.close();
      return memory;
    };
    const first = await closedMemory(await import('./native.ts'));
    vi.resetModules();
    const second = await closedMemory(await import('./native.ts'));
    const errors = await import('./errors.ts');
    expect(errors.MapramError).not.toBe(MapramError);
    const failure = async (memory: GuestMemory): Promise<unknown> => memory.scan().catch((thrown) => thrown);
    expect(await failure(first)).toBeInstanceOf(MapramError);
    expect(await failure(second)).toBeInstanceOf(errors.MapramError);
    expect(await failure(first)).toMatchObject({ code: 'E_USAGE' });
  });
});
