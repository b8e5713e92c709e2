import { spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Cleanup } from './support/cleanup.ts';
import { failWith, report, run, succeed } from './support/cli.ts';
import { names, pausedGuest, SMALL, testCleanup, waitingQemu } from './support/fixtures.ts';
import { hostProgram } from './support/kernel.ts';
import { startProgram } from './support/library.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';
import { Qmp } from './support/qmp.ts';
import { ramDigests } from './support/ram.ts';

// What is refused before anything happens to the guest.

/** A process that has nothing to do with any guest. */
function stranger(cleanup: Cleanup): { pid: number; alive: () => boolean } {
  const child = spawn('sleep', ['600'], { stdio: 'ignore' });
  cleanup.add(() => {
    child.kill('SIGKILL');
  });
  return { pid: child.pid as number, alive: () => child.exitCode === null && child.signalCode === null };
}

async function savedImage(cleanup: Cleanup): Promise<string> {
  const image = join(diskDirectory(cleanup), 'image');
  const source = await pausedGuest(cleanup);
  await succeed(['save', '--qmp', source.socket, image]);
  return image;
}

test('a failure that nobody takes note of ends the program, as Node has it', async () => {
  const child = startProgram(testCleanup(), `import { save } from 'mapram'; save({});`);
  expect(await new Promise((resolve) => child.once('close', resolve))).toBe(1);
});

/** Expects that a save is refused with the guest never stopped and no file made. */
async function expectSaveRefused(
  qemu: Qemu,
  status: number,
  code: string,
  words: string[] = [],
): Promise<string> {
  const directory = diskDirectory(testCleanup());
  const seen = qemu.qmp.events.length;
  const before = await qemu.qmp.status();
  const failure = await failWith(status, code, [
    'save',
    '--qmp',
    qemu.socket,
    ...words,
    join(directory, 'image'),
  ]);
  expect(failure.guestState).toBe('untouched');
  expect(await qemu.qmp.status()).toBe(before);
  expect(qemu.qmp.events.slice(seen).map(({ event }) => event)).not.toContain('STOP');
  expect(names(directory)).toEqual([]);
  return failure.error?.message ?? '';
}

describe('--pid of a process that is not the guest’s', () => {
  test('is refused by save', async () => {
    const cleanup = testCleanup();
    const other = stranger(cleanup);
    const qemu = await Qemu.start(SMALL, cleanup);
    const message = await expectSaveRefused(qemu, 5, 'E_GUEST_MISMATCH', ['--pid', String(other.pid)]);
    expect(message).toContain(String(other.pid));
    expect(other.alive()).toBe(true);
  });

  test('is refused by restore, even if that is another guest of the same shape', async () => {
    const cleanup = testCleanup();
    const image = await savedImage(cleanup);
    const other = await waitingQemu(cleanup);
    const qemu = await waitingQemu(cleanup);
    const before = await ramDigests(other);
    for (const pid of [other.pid, stranger(cleanup).pid]) {
      const line = ['restore', '--qmp', qemu.socket, '--method', 'fill', '--pid', String(pid), image];
      const failure = await failWith(5, 'E_GUEST_MISMATCH', line);
      expect(failure.guestState).toBe('untouched');
    }
    expect(await ramDigests(other)).toEqual(before);
    expect(await other.qmp.status()).toBe('inmigrate');
    await succeed(['restore', '--qmp', qemu.socket, '--pid', String(qemu.pid), image]);
  });

  test('or is none at all', async () => {
    const qemu = await Qemu.start(SMALL, testCleanup());
    const directory = diskDirectory(testCleanup());
    const line = ['save', '--qmp', qemu.socket, '--pid', '4194303', '--json', join(directory, 'image')];
    const result = await run(line);
    expect([2, 5]).toContain(result.status);
    expect(report(result)).toMatchObject({ ok: false, guestState: 'untouched' });
    expect(await qemu.qmp.status()).toBe('running');
  });
});

test('a guest is found by its QMP even where another process listens on the socket', async () => {
  const cleanup = testCleanup();
  const socket = join(diskDirectory(cleanup), 'passed.sock');
  const passed = [
    '-chardev',
    'socket,id=passed,fd=3,server=on,wait=off',
    '-mon',
    'chardev=passed,mode=control',
  ];
  const prefix = [hostProgram('listen-then-run'), socket];
  const qemu = await Qemu.start({ ...SMALL, extra: passed, prefix }, cleanup);
  const image = join(diskDirectory(cleanup), 'image');
  await succeed(['save', '--qmp', socket, image]);
  await expectSameRam(qemu, image, { canonical: true });
  const copy = await waitingQemu(cleanup);
  await succeed(['restore', '--qmp', copy.socket, '--then', 'pause', image]);
  await expectSameRam(copy, image);
});

describe('a QMP socket', () => {
  test('that another client holds is said to be busy, and not waited for without end', async () => {
    const cleanup = testCleanup();
    const qemu = await Qemu.start(SMALL, cleanup);
    const holder = await Qmp.connect(qemu.socket);
    const result = await run(['save', '--qmp', qemu.socket, '--json', join(diskDirectory(cleanup), 'image')]);
    await holder.close();
    expect(result.milliseconds).toBeLessThan(20_000);
    expect(result.status).toBe(5);
    expect(report(result)).toMatchObject({ ok: false, error: { code: 'E_QMP' }, guestState: 'untouched' });
    expect(report(result).error?.message).toMatch(/another|busy|one client/i);
    expect(await qemu.qmp.status()).toBe('running');
  });

  test('that does not exist', async () => {
    const directory = diskDirectory(testCleanup());
    const line = ['save', '--qmp', join(directory, 'none.sock'), join(directory, 'image')];
    const failure = await failWith(1, 'E_NOT_FOUND', line);
    expect(failure.error?.path).toBe(join(directory, 'none.sock'));
    expect(names(directory)).toEqual([]);
  });

  test('that speaks something else', async () => {
    const cleanup = testCleanup();
    const directory = diskDirectory(cleanup);
    const path = join(directory, 'other.sock');
    const server = createServer((socket) => {
      socket.on('error', () => {});
      socket.write('220 mail.example ESMTP\r\n');
    }).listen(path);
    cleanup.add(() => void server.close());
    await failWith(5, 'E_QMP', ['save', '--qmp', path, join(directory, 'image')]);
  });

  test('whose QEMU died', async () => {
    const cleanup = testCleanup();
    const qemu = await Qemu.start(SMALL, cleanup);
    const died = new Promise((resolve) => qemu.child.once('exit', resolve));
    qemu.child.kill('SIGKILL');
    await died;
    const line = ['save', '--qmp', qemu.socket, join(diskDirectory(cleanup), 'image')];
    const failure = await failWith(5, 'E_QMP', line);
    expect(failure.error?.message).toContain('nobody listens');
  });
});

describe('a guest that cannot be saved', () => {
  test('because a migration is under way', async () => {
    const cleanup = testCleanup();
    const qemu = await Qemu.start({ ...SMALL, program: 16, mebibytes: 96 }, cleanup);
    await qemu.qmp.execute('migrate-set-parameters', { 'max-bandwidth': 4096 });
    await qemu.qmp.execute('migrate', { uri: `file:${join(diskDirectory(cleanup), 'other')}` });
    const message = await expectSaveRefused(qemu, 5, 'E_GUEST_UNSUPPORTED');
    expect(message).toMatch(/migration/);
  });

  test('because something in it blocks migration', async () => {
    const cleanup = testCleanup();
    const shared = join(diskDirectory(cleanup), 'shared');
    mkdirSync(shared);
    const extra = ['-blockdev', `driver=vvfat,node-name=fat,dir=${shared},rw=on`];
    const message = await expectSaveRefused(
      await Qemu.start({ ...SMALL, extra }, cleanup),
      5,
      'E_GUEST_UNSUPPORTED',
    );
    expect(message).toMatch(/vvfat/);
  });

  test('because it has virtio-mem', async () => {
    const cleanup = testCleanup();
    const extra = [
      ...['-m', '64M,maxmem=192M', '-object', 'memory-backend-ram,id=plugged,size=128M'],
      ...['-device', 'virtio-mem-pci,id=vm0,memdev=plugged,requested-size=0'],
    ];
    const message = await expectSaveRefused(
      await Qemu.start({ ...SMALL, extra }, cleanup),
      5,
      'E_GUEST_UNSUPPORTED',
    );
    expect(message).toMatch(/virtio-mem/);
  });
});

describe('what mapped-ram excludes', () => {
  const CAPABILITIES: [string, string, Record<string, unknown>][] = [
    ['xbzrle', 'migrate-set-capabilities', { capabilities: [{ capability: 'xbzrle', state: true }] }],
    [
      'postcopy-ram',
      'migrate-set-capabilities',
      { capabilities: [{ capability: 'postcopy-ram', state: true }] },
    ],
    ['multifd-compression', 'migrate-set-parameters', { 'multifd-compression': 'zlib' }],
    ['tls-creds', 'migrate-set-parameters', { 'tls-creds': 'none-such' }],
  ];

  test.for(CAPABILITIES)('%s is named when QEMU is to load the image', async ([name, command, args]) => {
    const cleanup = testCleanup();
    const image = await savedImage(cleanup);
    const qemu = await waitingQemu(cleanup);
    await qemu.qmp.execute(command, args);
    const failure = await failWith(5, 'E_GUEST_UNSUPPORTED', [
      'restore',
      '--qmp',
      qemu.socket,
      '--method',
      'qemu',
      image,
    ]);
    expect(failure.error?.message).toContain(name);
    expect(failure.guestState).toBe('untouched');
    expect(await qemu.qmp.status()).toBe('inmigrate');
  });

  test.for(CAPABILITIES.slice(0, 3))('%s is no hindrance to a save', async ([, command, args]) => {
    const cleanup = testCleanup();
    const qemu = await pausedGuest(cleanup);
    await qemu.qmp.execute(command, args);
    await succeed(['save', '--qmp', qemu.socket, join(diskDirectory(cleanup), 'image')]);
  });
});
