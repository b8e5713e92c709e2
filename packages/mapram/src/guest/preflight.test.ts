import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openGuest } from './link.ts';
import { findSaveObstacles, isMigrating, requireSavable } from './preflight.ts';
import { type SmallQemu, startQemu, tell } from './qemu.fixture.ts';

async function obstaclesOf(qemu: SmallQemu): Promise<string[]> {
  const link = await openGuest({ qmp: qemu.socket }, new AbortController().signal);
  try {
    return await findSaveObstacles(link);
  } finally {
    link.close();
  }
}

const MEMORY_DEVICES = ['-m', '16M,maxmem=128M', '-object', 'memory-backend-ram,id=plugged,size=64M'];

describe('findSaveObstacles', () => {
  it('finds none in an ordinary guest', async () => {
    expect(await obstaclesOf(await startQemu('-S', '-device', 'virtio-net-pci', '-device', 'e1000'))).toEqual(
      [],
    );
  });

  it('finds a guest that is not there yet', async () => {
    const obstacles = await obstaclesOf(await startQemu('-incoming', 'defer'));
    expect(obstacles).toEqual([expect.stringContaining('waits for an incoming migration')]);
  });

  it('finds no guest in a QEMU without processors', async () => {
    const obstacles = await obstaclesOf(await startQemu('-machine', 'none'));
    expect(obstacles).toEqual([expect.stringContaining('no processors')]);
  });

  it('finds another migration, and none any more when it has ended', async () => {
    const qemu = await startQemu('-S');
    const capabilities = [{ capability: 'pause-before-switchover', state: true }];
    await tell(qemu, ['migrate-set-capabilities', { capabilities }]);
    await tell(qemu, ['migrate', { uri: `file:${join(qemu.directory, 'other')}` }]);
    await expect
      .poll(async () => (await obstaclesOf(qemu)).at(-1))
      .toBe('another migration is going on (pre-switchover)');
    await tell(qemu, ['migrate_cancel']);
    await expect.poll(() => obstaclesOf(qemu)).toEqual([]);
  });

  it('finds what QEMU says itself, and every device, at once', async () => {
    const qemu = await startQemu(
      ...['-S', ...MEMORY_DEVICES, '-device', 'virtio-mem-pci,memdev=plugged,id=vm0'],
      ...['-device', 'nvme,serial=x,id=disk'],
    );
    expect(await obstaclesOf(qemu)).toEqual([
      expect.stringContaining('nvme'),
      expect.stringMatching(/^device vm0 is a virtio-mem-pci/),
    ]);
  });

  it('knows a virtio-mem without an id, and takes other memory devices', async () => {
    const anonymous = await startQemu('-S', ...MEMORY_DEVICES, '-device', 'virtio-mem-pci,memdev=plugged');
    expect(await obstaclesOf(anonymous)).toEqual([expect.stringContaining('virtio-mem')]);
    const dimm = await startQemu(
      ...['-S', '-m', '16M,maxmem=256M,slots=1', '-object', 'memory-backend-ram,id=plugged,size=128M'],
      ...['-device', 'pc-dimm,memdev=plugged'],
    );
    expect(await obstaclesOf(dimm)).toEqual([]);
  });

  it('misses commands by probing', async () => {
    const execute = async (): Promise<unknown> => [{ name: 'stop' }, { name: 'cont' }];
    const monitor = { execute, events: { on: () => {}, off: () => {} } };
    const signal = new AbortController().signal;
    await expect(requireSavable(await openGuest({ monitor }, signal))).rejects.toMatchObject({
      code: 'E_GUEST_UNSUPPORTED',
      message: expect.stringMatching(/no QMP command .*xen-save-devices-state.*add-fd/),
    });
    const withFile = await openGuest({ monitor, scratchFile: '/scratch' }, signal);
    expect((await findSaveObstacles(withFile)).join()).not.toContain('add-fd');
  });
});

describe('isMigrating', () => {
  it('knows the states in which nothing goes on', () => {
    expect(['none', 'completed', 'failed', 'cancelled', undefined].map(isMigrating)).not.toContain(true);
    expect(['setup', 'active', 'device', 'postcopy-paused', 'cancelling'].map(isMigrating)).not.toContain(
      false,
    );
  });
});
