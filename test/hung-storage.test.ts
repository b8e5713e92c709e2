import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, type TestContext, test } from 'vitest';
import { type CliRun, report, start } from './support/cli.ts';
import { ext4, IS_ROOT } from './support/filesystem.ts';
import { largeGuest, midSave, names, testCleanup } from './support/fixtures.ts';
import type { Qemu } from './support/qemu.ts';

// Nothing needs the guest while writes wait for a disk that does not answer.

/** A save that is under way to a file system that is then frozen, which holds every write until it is thawed. */
interface HungSave {
  qemu: Qemu;
  save: CliRun;
  directory: string;
  thaw(): void;
}

async function hungSave(context: TestContext, engine: string): Promise<HungSave> {
  if (!IS_ROOT) context.skip('only root can freeze a file system');
  const cleanup = testCleanup();
  const qemu = await largeGuest(cleanup);
  const directory = ext4(cleanup, 1536);
  let isFrozen = false;
  const thaw = (): void => {
    if (isFrozen) execFileSync('fsfreeze', ['--unfreeze', directory]);
    isFrozen = false;
  };
  cleanup.add(thaw);
  const image = join(directory, 'image');
  const slowly = ['--channels', '1', '--queue-depth', '1', '--engine', engine];
  const save = start(['save', '--qmp', qemu.socket, ...slowly, '--json', image]);
  await midSave(save, image);
  execFileSync('fsfreeze', ['--freeze', directory]);
  isFrozen = true;
  expect(await qemu.qmp.status()).toBe('paused');
  return { qemu, save, directory, thaw };
}

describe.each(['io-uring', 'blocking'])('storage that hangs in mid-save, by %s', (engine) => {
  test('a signal lets the guest run at once, and what hangs is named and waited for', async (context) => {
    const { qemu, save, directory, thaw } = await hungSave(context, engine);
    save.child.kill('SIGINT');
    await expect.poll(() => qemu.qmp.status(), { timeout: 2_000 }).toBe('running');
    await sleep(12_000);
    expect(save.child.exitCode).toBeNull();
    thaw();
    const result = await save.done;
    expect(result.status).toBe(130);
    expect(result.stderr).toContain('the storage does not answer');
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
    expect(names(directory)).not.toContain('image');
  });
});
