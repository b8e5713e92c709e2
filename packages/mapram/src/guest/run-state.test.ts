import { describe, expect, it, onTestFinished } from 'vitest';
import { startQemu, stateOf, tell } from './qemu.fixture.ts';
import { QmpClient } from './qmp.ts';
import { isLive, type StoppedGuest, stopGuest } from './run-state.ts';

async function stopped(...extra: string[]) {
  const qemu = await startQemu(...extra);
  const monitor = await QmpClient.connect(qemu.socket);
  onTestFinished(() => monitor.close());
  const taken: boolean[] = [];
  const stop = (): Promise<StoppedGuest> => stopGuest(monitor, {}, { take: (live) => taken.push(live) });
  return { qemu, monitor, taken, stop };
}

describe('stopGuest', () => {
  it('stops a running guest and says so before', async () => {
    const { qemu, stop, taken, monitor } = await stopped();
    const guest = await stop();
    expect(guest.found).toBe('running');
    expect(taken).toEqual([true]);
    expect(await stateOf(qemu)).toBe('paused');
    await guest.watch.requireStill(monitor, {});
  });

  it('leaves a standing guest as it is', async () => {
    const { qemu, stop, taken } = await stopped('-S');
    expect((await stop()).found).toBe('prelaunch');
    expect(taken).toEqual([false]);
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

  it('asks, too, for a monitor may lose events', async () => {
    const { qemu, monitor } = await stopped();
    const deaf = {
      execute: monitor.execute.bind(monitor),
      events: { on: () => {}, off: () => {} },
    };
    const guest = await stopGuest(deaf, {}, { take: () => {} });
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
