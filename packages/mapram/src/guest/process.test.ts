import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createConnection, createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MapramError } from '../errors.ts';
import { type GuestLink, openGuest } from './link.ts';
import { findGuestProcess } from './process.ts';
import { type SmallQemu, startQemu, startQemuThrough, tell } from './qemu.fixture.ts';
import { ScratchFileHandover } from './scratch-file.ts';

async function link(qemu: SmallQemu, pid?: number): Promise<GuestLink> {
  const opened = await openGuest({ qmp: qemu.socket, pid }, new AbortController().signal);
  onTestFinished(() => opened.close());
  return opened;
}

/** Finds the process through a connection of its own, for QEMU serves one client a socket. */
async function find(qemu: SmallQemu, claimed?: number): Promise<number> {
  const opened = await openGuest({ qmp: qemu.socket, pid: claimed }, new AbortController().signal);
  try {
    return await findGuestProcess(opened);
  } finally {
    opened.close();
  }
}

describe('findGuestProcess', () => {
  it('finds QEMU by its threads', async () => {
    const qemu = await startQemu('-S', '-smp', '3');
    expect(await find(qemu)).toBe(qemu.pid);
  });

  it('confirms the right process and leaves nothing in QEMU', async () => {
    const qemu = await startQemu('-S');
    expect(await find(qemu, qemu.pid)).toBe(qemu.pid);
    expect(await tell(qemu, ['query-fdsets'])).toEqual([]);
  });

  it('refuses another QEMU, an unrelated process, itself, and none', async () => {
    const [qemu, other] = await Promise.all([startQemu('-S'), startQemu('-S')]);
    for (const pid of [other.pid, 1, process.pid, 4194303]) {
      await expect(find(qemu, pid)).rejects.toMatchObject({
        code: 'E_GUEST_MISMATCH',
        message: expect.stringContaining(String(pid)),
        field: 'pid',
      });
    }
  });

  it('refuses a process whose thread numbers are the guest’s only by chance', async () => {
    const qemu = await startQemu('-S');
    const child = spawn('sleep', ['600'], { stdio: 'ignore' });
    onTestFinished(() => void child.kill());
    const real = await link(qemu);
    // As if QEMU ran in a pid namespace in which its processor's thread had the number of our child.
    const monitor = {
      events: real.monitor.events,
      execute: async (command: string, ...rest: [Record<string, unknown>?, object?]): Promise<unknown> =>
        command === 'query-cpus-fast'
          ? [{ 'thread-id': child.pid, target: 'x86_64' }]
          : real.monitor.execute(command, ...rest),
    };
    const fooled = { ...real, monitor, claimedPid: undefined };
    await expect(findGuestProcess(fooled)).rejects.toMatchObject({ code: 'E_GUEST_UNSUPPORTED' });
    const claimed = { ...fooled, claimedPid: child.pid };
    await expect(findGuestProcess(claimed)).rejects.toMatchObject({ code: 'E_GUEST_MISMATCH' });
  });

  it.each([undefined, '/var/tmp/mapram-unit-possession'])(
    'does not take itself for QEMU, nor a stranger (scratch file: %s)',
    async (scratchFile) => {
      const child = spawn('sleep', ['600'], { stdio: 'ignore' });
      onTestFinished(() => void child.kill());
      const qemu = await startQemu('-S');
      const real = await link(qemu);
      for (const pid of [process.pid, child.pid]) {
        // As if QEMU ran in a pid namespace in which its processor's thread had a number of ours.
        const execute: typeof real.monitor.execute = async (command, ...rest) =>
          command === 'query-cpus-fast'
            ? [{ 'thread-id': pid, target: 'x86_64' }]
            : real.monitor.execute(command, ...rest);
        const monitor = { events: real.monitor.events, execute };
        const handover =
          scratchFile === undefined ? real.handover : new ScratchFileHandover(real.monitor, scratchFile);
        await expect(findGuestProcess({ ...real, monitor, handover })).rejects.toMatchObject({
          code: 'E_GUEST_UNSUPPORTED',
        });
      }
    },
  );

  it('knows QEMU by the scratch file that it opens, and leaves nothing behind', async () => {
    const qemu = await startQemu('-S');
    const scratchFile = join(qemu.directory, 'scratch');
    const real = await link(qemu);
    const before = await tell(qemu, ['query-chardev']);
    const handover = new ScratchFileHandover(real.monitor, scratchFile);
    expect(await findGuestProcess({ ...real, handover })).toBe(qemu.pid);
    expect(await tell(qemu, ['query-chardev'])).toEqual(before);
    expect(existsSync(scratchFile)).toBe(false);
  });

  it('says that QEMU is gone when it was killed since it named its threads', async () => {
    const qemu = await startQemu('-S');
    const real = await link(qemu);
    const execute: typeof real.monitor.execute = async (command, ...rest) => {
      const answer = await real.monitor.execute(command, ...rest);
      const exit = new Promise((resolve) => qemu.child.once('exit', resolve));
      if (qemu.child.kill('SIGKILL')) await exit;
      return answer;
    };
    const monitor = { events: real.monitor.events, execute };
    for (const claimedPid of [undefined, qemu.pid]) {
      await expect(findGuestProcess({ ...real, monitor, claimedPid })).rejects.toMatchObject({
        code: 'E_GUEST_GONE',
      });
    }
  });

  it('says that there is no such process', async () => {
    const qemu = await startQemu('-S');
    await expect(find(qemu, 4194303)).rejects.toThrow('there is no such process');
  });

  it('asks for the process if QEMU’s threads cannot be seen', async () => {
    const qemu = await startQemu('-S');
    const real = await link(qemu);
    const monitor = {
      events: real.monitor.events,
      execute: async (command: string, ...rest: [Record<string, unknown>?, object?]): Promise<unknown> =>
        command === 'query-cpus-fast'
          ? [{ 'thread-id': 4194303, target: 'x86_64' }]
          : real.monitor.execute(command, ...rest),
    };
    await expect(findGuestProcess({ ...real, monitor })).rejects.toMatchObject({
      code: 'E_GUEST_UNSUPPORTED',
      message: expect.stringContaining('name its process'),
    });
  });

  it('does not take what hides another process for the guest’s', async () => {
    const qemu = await startQemu('-S');
    const real = await link(qemu);
    const refused = new MapramError('E_PERMISSION', 'its files may not be looked at');
    // As if the number of QEMU's thread were here that of a process which may not be looked at.
    real.handover.reaches = async (pid) => {
      if (pid === process.pid) return true;
      throw refused;
    };
    const outOfSight = { ...real, peerPid: 0 };
    await expect(findGuestProcess(outOfSight)).rejects.toMatchObject({
      code: 'E_GUEST_UNSUPPORTED',
      message: expect.stringContaining('run mapram in that namespace'),
    });
    await expect(findGuestProcess(real)).rejects.toBe(refused);
    const noDescriptors = new MapramError('E_HOST_UNSUPPORTED', 'EMFILE');
    real.handover.reaches = async () => {
      throw noDescriptors;
    };
    await expect(findGuestProcess(outOfSight)).rejects.toBe(noDescriptors);
  });

  it.each([true, false])(
    'says that a relay passes no descriptors (QEMU on this host: %s)',
    async (isHere) => {
      const qemu = await startQemu('-S');
      const path = join(qemu.directory, 'relay');
      const relay = createServer((socket) => {
        const onward = createConnection(qemu.socket);
        socket.pipe(onward).pipe(socket);
        for (const end of [socket, onward]) end.on('error', () => {});
      }).listen(path);
      onTestFinished(() => void relay.close());
      const real = await link({ ...qemu, socket: path });
      const execute: typeof real.monitor.execute = async (command, ...rest) =>
        command === 'query-cpus-fast' && !isHere
          ? [{ 'thread-id': 4194303, target: 'x86_64' }]
          : real.monitor.execute(command, ...rest);
      const monitor = { events: real.monitor.events, execute };
      await expect(findGuestProcess({ ...real, monitor })).rejects.toMatchObject({
        code: 'E_QMP',
        message: expect.stringContaining('a relay (socat, ssh -L)'),
      });
    },
  );

  it('says that a QEMU without processors holds no guest', async () => {
    const qemu = await startQemu('-machine', 'none');
    await expect(find(qemu)).rejects.toMatchObject({
      code: 'E_GUEST_UNSUPPORTED',
      message: expect.stringContaining('no processors (-machine none'),
    });
  });

  it('finds a QEMU in another pid namespace by its socket, and verifies a process that is named', async (context) => {
    const probe = spawn('unshare', ['--pid', '--fork', 'true'], { stdio: 'ignore' });
    const status = await new Promise((resolve) => probe.once('exit', resolve).once('error', resolve));
    if (status !== 0) context.skip('this host does not let us make a pid namespace');
    const qemu = await startQemuThrough(['unshare', '--pid', '--fork', '--kill-child'], '-S');
    const children = readFileSync(`/proc/${qemu.pid}/task/${qemu.pid}/children`, 'utf8');
    const pid = Number(children.trim());
    expect(await find(qemu, pid)).toBe(pid);
    await expect(find(qemu, qemu.pid)).rejects.toMatchObject({
      code: 'E_GUEST_MISMATCH',
    });
    expect(await find(qemu)).toBe(pid);
  });
});
