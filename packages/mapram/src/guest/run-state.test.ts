import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import type { Monitor } from './monitor.ts';
import { interpose, startQemu, stateOf, tell } from './qemu.fixture.ts';
import { QmpClient } from './qmp.ts';
import { isLive, RunWatch } from './run-state.ts';

/** Stops the guest, and tells the state that it was found in, how often it was taken, and what watches it since. */
async function stopGuest(monitor: Monitor): Promise<{ found: string; taken: string[]; watch: RunWatch }> {
  const watch = new RunWatch(monitor);
  const taken: string[] = [];
  const found = await watch.stop('running', {}, (state) => taken.push(state));
  return { found, taken, watch };
}

async function stopped(...extra: string[]) {
  const qemu = await startQemu(...extra);
  const monitor = await QmpClient.connect(qemu.socket);
  onTestFinished(() => monitor.close());
  return { qemu, monitor, stop: () => stopGuest(monitor) };
}

describe('RunWatch', () => {
  it('stops a running guest and says so before', async () => {
    const { qemu, stop, monitor } = await stopped();
    const guest = await stop();
    expect(guest.found).toBe('running');
    expect(guest.taken).toEqual(['running']);
    expect(await stateOf(qemu)).toBe('paused');
    await guest.watch.requireStill(monitor, {});
  });

  it('finds a guest shut down that shuts down right before', async () => {
    const { qemu, monitor } = await stopped('-action', 'reboot=shutdown,shutdown=pause');
    const guest = await stopGuest(
      interpose(monitor, 'stop', async () => {
        await tell(qemu, ['system_reset']);
        await expect.poll(() => stateOf(qemu)).toBe('shutdown');
      }),
    );
    expect(guest.found).toBe('shutdown');
    expect(guest.taken).toEqual(['running', 'shutdown']);
  });

  it('leaves a standing guest as it is', async () => {
    const { qemu, stop } = await stopped('-S');
    expect(await stop()).toMatchObject({ found: 'prelaunch', taken: ['prelaunch'] });
    expect(await stateOf(qemu)).toBe('prelaunch');
  });

  it('does not mind what happened before', async () => {
    const { qemu, stop, monitor } = await stopped();
    await tell(qemu, ['stop'], ['cont'], ['system_reset']);
    const guest = await stop();
    await guest.watch.requireStill(monitor, {});
  });

  it.each([
    [['cont'], 'RESUME'],
    [['cont', 'stop'], 'RESUME'],
    [['system_reset'], 'RESET'],
  ])('notices %j by another client', async (commands, event) => {
    for (const extra of [[], ['-S']]) {
      const { qemu, stop, monitor } = await stopped(...extra);
      const guest = await stop();
      await tell(qemu, ...commands.map((command): [string] => [command]));
      await expect(guest.watch.requireStill(monitor, {})).rejects.toMatchObject({
        code: 'E_GUEST_RAN',
        message: expect.stringContaining(event),
      });
      guest.watch.release();
    }
  });

  it('sees what comes after the stop of another client, which leaves nothing to stop', async () => {
    const { qemu, monitor } = await stopped();
    const guest = await stopGuest(interpose(monitor, 'stop', () => tell(qemu, ['stop'])));
    await tell(qemu, ['cont'], ['stop']);
    await expect(guest.watch.requireStill(monitor, {})).rejects.toMatchObject({ code: 'E_GUEST_RAN' });
  });

  /** A stopped guest's QEMU with a disk, and snapshots of it by a job of its own for each. */
  async function withSnapshots() {
    const directory = mkdtempSync('/var/tmp/mapram-unit-');
    onTestFinished(() => rmSync(directory, { recursive: true }));
    const disk = join(directory, 'disk');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', disk, '64M']);
    const blockdev = `driver=qcow2,node-name=disk,file.driver=file,file.filename=${disk}`;
    const guest = await stopped('-blockdev', blockdev);
    const snapshot = async (command: string, id = command): Promise<void> => {
      const names = { 'job-id': id, tag: id, vmstate: 'disk', devices: ['disk'] };
      await tell(guest.qemu, [
        command,
        { ...names, tag: command === 'snapshot-load' ? 'snapshot-save' : id },
      ]);
      const job = { id, status: 'concluded' };
      await expect.poll(() => tell(guest.qemu, ['query-jobs'])).toContainEqual(expect.objectContaining(job));
    };
    const dismiss = (id: string): Promise<unknown> => tell(guest.qemu, ['job-dismiss', { id }]);
    return { ...guest, snapshot, dismiss };
  }

  it('sees a snapshot that is loaded', async () => {
    const { stop, monitor, snapshot, dismiss } = await withSnapshots();
    await snapshot('snapshot-save');
    const guest = await stop();
    await snapshot('snapshot-load');
    await dismiss('snapshot-load');
    await expect(guest.watch.requireStill(monitor, {})).rejects.toMatchObject({
      code: 'E_GUEST_RAN',
      message: expect.stringContaining('snapshot-load'),
    });
  }, 20_000);

  it('takes a job that is gone before it could be looked at for a snapshot that was loaded', async () => {
    const { qemu, monitor, snapshot, dismiss } = await withSnapshots();
    await snapshot('snapshot-save');
    let isHeld = false;
    const late: Monitor = {
      events: monitor.events,
      execute: async (command, ...rest) => {
        await vi.waitUntil(() => !(isHeld && command === 'query-jobs'), 5_000);
        return monitor.execute(command, ...rest);
      },
    };
    const guest = await stopGuest(late);
    isHeld = true;
    await snapshot('snapshot-load');
    await dismiss('snapshot-load');
    isHeld = false;
    await expect(guest.watch.requireStill(late, {})).rejects.toMatchObject({
      code: 'E_GUEST_RAN',
      message: expect.stringContaining('job snapshot-load'),
    });
    expect(await stateOf(qemu)).toBe('paused');
  }, 20_000);

  it('sees a snapshot that is loaded under the id of a job of before', async () => {
    const { stop, monitor, snapshot, dismiss } = await withSnapshots();
    await snapshot('snapshot-save', 'again');
    const guest = await stop();
    await dismiss('again');
    await snapshot('snapshot-load', 'again');
    await expect(guest.watch.requireStill(monitor, {})).rejects.toMatchObject({ code: 'E_GUEST_RAN' });
  }, 20_000);

  it('does not mind a job of before that ends meanwhile', async () => {
    const { qemu, stop, monitor } = await withSnapshots();
    const target = join(qemu.directory, 'target');
    execFileSync('qemu-img', ['create', '-q', '-f', 'raw', target, '64M']);
    const node = { driver: 'file', 'node-name': 'target', filename: target };
    const backup = { 'job-id': 'backup', device: 'disk', target: 'target', sync: 'full' };
    await tell(qemu, ['blockdev-add', node], ['blockdev-backup', { ...backup, speed: 1 }]);
    const guest = await stop();
    await tell(qemu, ['block-job-set-speed', { device: 'backup', speed: 0 }]);
    await expect.poll(() => tell(qemu, ['query-jobs']), { timeout: 10_000 }).toEqual([]);
    await guest.watch.requireStill(monitor, {});
  }, 20_000);

  it('does not mind a snapshot that was loaded before, whose job nobody dismissed', async () => {
    const { qemu, stop, monitor, snapshot } = await withSnapshots();
    await snapshot('snapshot-save');
    await snapshot('snapshot-load');
    await tell(qemu, ['cont']);
    const guest = await stop();
    await snapshot('snapshot-save', 'another');
    await guest.watch.requireStill(monitor, {});
  }, 20_000);

  it('asks, too, for a monitor may lose events', async () => {
    const { qemu, monitor } = await stopped();
    const deaf = {
      execute: monitor.execute.bind(monitor),
      events: { on: () => {}, off: () => {} },
    };
    const guest = await stopGuest(deaf);
    await guest.watch.requireStill(deaf, {});
    await tell(qemu, ['cont']);
    await expect(guest.watch.requireStill(deaf, {})).rejects.toMatchObject({ code: 'E_GUEST_RAN' });
  });
});

describe('isLive', () => {
  it('counts a suspended guest, whose timers run', () => {
    expect(['running', 'suspended'].map(isLive)).toEqual([true, true]);
    expect(['paused', 'prelaunch', 'shutdown', 'inmigrate'].map(isLive)).not.toContain(true);
  });
});
