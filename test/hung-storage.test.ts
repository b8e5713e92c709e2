import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, type TestContext, test } from 'vitest';
import type { Cleanup } from './support/cleanup.ts';
import { type CliRun, report, start, succeed } from './support/cli.ts';
import { ext4, fuse, IS_ROOT, needTools } from './support/filesystem.ts';
import { largeGuest, midSave, names, pausedGuest, SMALL, testCleanup } from './support/fixtures.ts';
import { diskDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';

// Nothing needs the guest while writes wait for a disk that does not answer.

/** A save that is under way to a file system that is then frozen, which holds every write until it is thawed. */
interface HungSave {
  qemu: Qemu;
  save: CliRun;
  directory: string;
  thaw(): void;
}

/** Freezes the file system at `directory` until it is thawed. */
function freeze(cleanup: Cleanup, directory: string): () => void {
  execFileSync('fsfreeze', ['--freeze', directory]);
  let isFrozen = true;
  const thaw = (): void => {
    if (isFrozen) execFileSync('fsfreeze', ['--unfreeze', directory]);
    isFrozen = false;
  };
  cleanup.add(thaw);
  return thaw;
}

async function hungSave(context: TestContext, engine: string): Promise<HungSave> {
  if (!IS_ROOT) context.skip('only root can freeze a file system');
  const cleanup = testCleanup();
  const qemu = await largeGuest(cleanup);
  const directory = ext4(cleanup, 1536);
  const image = join(directory, 'image');
  const slowly = ['--channels', '1', '--queue-depth', '1', '--engine', engine];
  const save = start(['save', '--qmp', qemu.socket, ...slowly, '--json', image]);
  await midSave(save, image);
  const thaw = freeze(cleanup, directory);
  expect(await qemu.qmp.status()).toBe('paused');
  return { qemu, save, directory, thaw };
}

describe.each(['io-uring', 'blocking'])('storage that hangs in mid-save, by %s', (engine) => {
  test('a signal lets the guest run at once, and what hangs is named and waited for', async (context) => {
    const { qemu, save, directory, thaw } = await hungSave(context, engine);
    await sleep(12_000);
    expect(await qemu.qmp.status()).toBe('paused');
    save.child.kill('SIGINT');
    await expect.poll(() => qemu.qmp.status(), { timeout: 2_000 }).toBe('running');
    await sleep(12_000);
    expect(save.child.exitCode).toBeNull();
    thaw();
    const result = await save.done;
    expect(result.status).toBe(130);
    expect(result.stderr).toMatch(/not answered for 10 s; an interrupt lets the guest run\n.*cancelling/);
    expect(result.stderr).toContain('not answered for 10 s\n');
    expect(report(result)).toMatchObject({ error: { code: 'E_CANCELLED' }, guestState: 'running' });
    expect(names(directory)).toEqual(['lost+found']);
    expect(await qemu.qmp.status()).toBe('running');
  });

  test('a second signal leaves a running guest', async (context) => {
    const { qemu, save, directory, thaw } = await hungSave(context, engine);
    save.child.kill('SIGTERM');
    await expect.poll(() => qemu.qmp.status(), { timeout: 2_000 }).toBe('running');
    save.child.kill('SIGTERM');
    await sleep(1_000);
    expect(await qemu.qmp.status()).toBe('running');
    // The kernel ends a process only when its writes have ended.
    thaw();
    const result = await save.done;
    expect(result.status).toBe(143);
    // After one signal there would be a report.
    expect(result.stdout).toBe('');
    expect(result.stderr).toContain('stopped at once; the guest may be paused');
    expect(names(directory)).not.toContain('image');
  });
});

test('storage that hangs before the guest is stopped is named, and a signal ends the job at once', async (context) => {
  if (!IS_ROOT) context.skip('only root can freeze a file system');
  const cleanup = testCleanup();
  const qemu = await Qemu.start(SMALL, cleanup);
  const directory = ext4(cleanup, 128);
  const thaw = freeze(cleanup, directory);
  const save = start(['save', '--qmp', qemu.socket, '--json', join(directory, 'image')]);
  let stdout = '';
  save.child.stdout?.on('data', (text: string) => (stdout += text));
  await sleep(12_000);
  expect(await qemu.qmp.status()).toBe('running');
  save.child.kill('SIGINT');
  await expect.poll(() => stdout, { timeout: 2_000 }).toContain('E_CANCELLED');
  // Its file is still being created.
  await sleep(12_000);
  expect(save.child.exitCode).toBeNull();
  thaw();
  const result = await save.done;
  expect(result.status).toBe(130);
  expect(result.stderr).toMatch(/not answered for 10 s\n.*cancelling/);
  expect(result.stderr).toContain('this process ends when it does');
  expect(report(result)).toMatchObject({ error: { code: 'E_CANCELLED' }, guestState: 'untouched' });
  expect(names(directory)).toEqual(['lost+found']);
});

test('a CD of the guest’s on a server that is gone does not keep a save from replacing an image', async (context) => {
  if (!IS_ROOT) context.skip('mounting a file system needs root');
  needTools(context, ['unionfs']);
  const cleanup = testCleanup();
  const { directory, server } = await fuse(cleanup);
  writeFileSync(join(directory, 'cd'), 'x'.repeat(4096));
  const cd = `file=${join(directory, 'cd')},format=raw,media=cdrom,readonly=on`;
  const qemu = await pausedGuest(cleanup, { extra: ['-drive', cd] });
  const image = join(diskDirectory(cleanup), 'image');
  writeFileSync(image, 'old');
  server.kill('SIGSTOP');
  cleanup.add(() => void server.kill('SIGCONT'));
  // For a second the kernel believes what it knows of a file there.
  await sleep(2_000);
  await succeed(['save', '--qmp', qemu.socket, '--force', image]);
});
