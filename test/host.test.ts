import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, type TestContext, test } from 'vitest';
import { Cleanup } from './support/cleanup.ts';
import { failWith, run, succeed } from './support/cli.ts';
import { ext4, IS_ROOT } from './support/filesystem.ts';
import { names, pausedGuest, testCleanup, waitingQemu } from './support/fixtures.ts';
import { hostLibrary, hostProgram } from './support/kernel.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import type { Qemu } from './support/qemu.ts';

// Hosts that lack something: io_uring, reading another process's memory by a call, O_DIRECT.

const cleanup = new Cleanup();
let qemu: Qemu;

beforeAll(async () => {
  qemu = await pausedGuest(cleanup);
});
afterAll(() => cleanup.run());

describe('a host that forbids io_uring', () => {
  const forbidden = { prefix: [hostProgram('deny-io-uring')] };

  test('saves and restores by the blocking engine with auto', async () => {
    const local = testCleanup();
    const image = join(diskDirectory(local), 'image');
    const saved = await succeed(['save', '--qmp', qemu.socket, image], forbidden);
    expect(saved.engine).toBe('blocking');
    await expectSameRam(qemu, image, { canonical: true });
    const copy = await waitingQemu(local, { paused: true });
    const restored = await succeed(['restore', '--qmp', copy.socket, '--method', 'fill', image], forbidden);
    expect(restored.engine).toBe('blocking');
    await expectSameRam(copy, image);
  });

  test.for(['io-uring', 'tokio-uring'])('refuses %s when it is named', async (engine) => {
    const directory = diskDirectory(testCleanup());
    const line = ['save', '--qmp', qemu.socket, '--engine', engine, join(directory, 'image')];
    const failure = await failWith(4, 'E_HOST_UNSUPPORTED', line, forbidden);
    expect(failure.error?.message).toMatch(/seccomp|io_uring_disabled/);
    expect(failure.guestState).toBe('untouched');
    expect(names(directory)).toEqual([]);
  });

  test('is told so by doctor', async () => {
    const result = await run(['doctor', '--json'], forbidden);
    expect(result.stdout).toMatch(/io.uring/);
    expect(result.stdout).toMatch(/seccomp|io_uring_disabled/);
  });
});

describe('a host that forbids process_vm_readv and process_vm_writev', () => {
  const denier = hostProgram('deny-process-vm');

  test('saves and restores by /proc/PID/mem', async () => {
    const local = testCleanup();
    const image = join(diskDirectory(local), 'image');
    await succeed(['save', '--qmp', qemu.socket, image], { prefix: [denier] });
    await expectSameRam(qemu, image, { canonical: true });
    const copy = await waitingQemu(local, { paused: true });
    await succeed(['restore', '--qmp', copy.socket, '--method', 'fill', image], { prefix: [denier] });
    await expectSameRam(copy, image);
  });

  test('and /proc/PID/mem too is told that a seccomp filter is in the way, not ptrace_scope', async (context) => {
    if (!IS_ROOT) context.skip('only root may do all the rest');
    const directory = diskDirectory(testCleanup());
    const line = ['save', '--qmp', qemu.socket, join(directory, 'image')];
    const failure = await failWith(4, 'E_PERMISSION', line, { prefix: [denier, '--mem'] });
    expect(failure.error?.message).toMatch(/CAP_SYS_PTRACE.*seccomp/);
    expect(failure.error?.message).not.toMatch(/ptrace_scope/);
    expect(failure.guestState).toBe('untouched');
    expect(names(directory)).toEqual([]);
  });
});

test('root without CAP_SYS_PTRACE is told that it may not look, whether it names the process or not', async (context) => {
  if (!IS_ROOT) context.skip('only root can give rights up that only root has');
  const directory = diskDirectory(testCleanup());
  const prefix = ['setpriv', '--bounding-set', '-sys_ptrace'];
  for (const words of [[], ['--pid', String(qemu.pid)]]) {
    const line = ['save', '--qmp', qemu.socket, ...words, join(directory, 'image')];
    const failure = await failWith(4, 'E_PERMISSION', line, { prefix });
    expect(failure.error?.message).toContain(`process ${qemu.pid}`);
    expect(failure.guestState).toBe('untouched');
  }
  expect(names(directory)).toEqual([]);
});

describe('a host with pages of 16 KiB', () => {
  const large = { env: { LD_PRELOAD: hostLibrary('large-pages') } };

  test('is refused before the guest is touched', async () => {
    const directory = diskDirectory(testCleanup());
    const line = ['save', '--qmp', qemu.socket, join(directory, 'image')];
    const failure = await failWith(4, 'E_HOST_UNSUPPORTED', line, large);
    expect(failure.error?.message).toMatch(/16384/);
    expect(failure.guestState).toBe('untouched');
    expect(names(directory)).toEqual([]);
  });

  test('is told so by doctor', async () => {
    const result = await run(['doctor', '--json'], large);
    expect(result.status).not.toBe(0);
    expect(result.stdout).toMatch(/page-size.*16384/s);
    // What follows from it is not said again, with advice that does not help.
    expect(result.stdout).not.toMatch(/engine-|publishing/);
  });
});

describe('a file system without O_DIRECT', () => {
  // ext4 that journals its data takes O_DIRECT for buffered I/O, or refuses it, by the kernel's age.
  const journaling = (context: TestContext, local: Cleanup): string => {
    if (!IS_ROOT) context.skip('mounting a file system of its own needs root');
    return ext4(local, 512, 'data=journal');
  };

  test('is refused, naming --no-direct, and saved to with it', async (context) => {
    const local = testCleanup();
    const directory = journaling(context, local);
    const image = join(directory, 'image');
    const before = names(directory);
    const failure = await failWith(4, 'E_HOST_UNSUPPORTED', ['save', '--qmp', qemu.socket, image]);
    expect(failure.error?.message).toMatch(/has no direct I\/O; go without it/);
    expect(names(directory)).toEqual(before);
    expect(await qemu.qmp.status()).toBe('paused');
    const saved = await succeed(['save', '--qmp', qemu.socket, '--no-direct', image]);
    expect(saved.direct).toBe(false);
    await expectSameRam(qemu, image, { canonical: true });
  });

  test('is restored from with --no-direct', async (context) => {
    const local = testCleanup();
    const image = join(journaling(context, local), 'image');
    await succeed(['save', '--qmp', qemu.socket, '--no-direct', image]);
    for (const method of ['fill', 'qemu']) {
      const copy = await waitingQemu(local, { paused: true });
      await succeed(['restore', '--qmp', copy.socket, '--method', method, '--no-direct', image]);
      await expectSameRam(copy, image);
    }
  });
});

test('a loop device with sectors of 4 KiB is written with its alignment', async (context) => {
  if (!IS_ROOT) context.skip('a loop device of its own needs root');
  const local = testCleanup();
  const directory = diskDirectory(local);
  const disk = join(directory, 'disk');
  execFileSync('truncate', ['--size=512M', disk]);
  const device = execFileSync('losetup', ['--find', '--show', '--sector-size', '4096', disk], {
    encoding: 'utf8',
  }).trim();
  local.add(() => void execFileSync('losetup', ['--detach', device]));
  execFileSync('mkfs.ext4', ['-q', device]);
  const mount = join(directory, 'mount');
  execFileSync('mkdir', [mount]);
  execFileSync('mount', [device, mount]);
  local.add(() => void execFileSync('umount', [mount]));
  const image = join(mount, 'image');
  await succeed(['save', '--qmp', qemu.socket, image]);
  await expectSameRam(qemu, image, { canonical: true });
});
