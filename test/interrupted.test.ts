import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { Cleanup } from './support/cleanup.ts';
import { type CliRun, report, run, start, succeed } from './support/cli.ts';
import { waitForProgram } from './support/console.ts';
import { largeGuest, midSave, names, SLOWLY, testCleanup } from './support/fixtures.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';
import { Qmp } from './support/qmp.ts';
import { waitFor } from './support/wait.ts';

// What happens in the middle of a save: kills, signals, other clients.

/** A guest whose private memory is mostly data. */
async function privateGuest(cleanup: Cleanup): Promise<Qemu> {
  const qemu = await Qemu.start({ machine: 'q35', mebibytes: 1280, program: 1024 }, cleanup);
  await waitForProgram(qemu);
  return qemu;
}

describe('QEMU killed in mid-save', () => {
  test.for([
    { name: 'shared memory', guest: (cleanup: Cleanup) => largeGuest(cleanup) },
    { name: 'private memory', guest: privateGuest },
  ])('$name: exit 5, and nothing that looks like an image', async ({ guest }) => {
    const cleanup = testCleanup();
    const qemu = await guest(cleanup);
    const directory = diskDirectory(cleanup);
    const image = join(directory, 'image');
    const save = start(['save', '--qmp', qemu.socket, ...SLOWLY, '--json', image]);
    await midSave(save, image);
    qemu.child.kill('SIGKILL');
    const result = await save.done;
    expect(result.status).toBe(5);
    expect(report(result)).toMatchObject({ ok: false, error: { code: 'E_GUEST_GONE' }, guestState: 'gone' });
    expect(names(directory)).toEqual([]);
  });
});

describe('a signal in mid-save', () => {
  test.for<[NodeJS.Signals, number, string]>([
    ['SIGINT', 130, 'running'],
    ['SIGTERM', 143, 'running'],
    ['SIGINT', 130, 'paused'],
  ])('%s exits with %i and the guest is %s, as it was', async ([signal, status, state]) => {
    const cleanup = testCleanup();
    const qemu = await largeGuest(cleanup);
    if (state === 'paused') await qemu.qmp.execute('stop');
    const directory = diskDirectory(cleanup);
    const image = join(directory, 'image');
    const save = start(['save', '--qmp', qemu.socket, ...SLOWLY, '--json', image]);
    await midSave(save, image);
    expect(await qemu.qmp.status()).toBe('paused');
    save.child.kill(signal);
    const result = await save.done;
    expect(result).toMatchObject({ status, signal: null });
    expect(report(result)).toMatchObject({ ok: false, error: { code: 'E_CANCELLED' }, guestState: state });
    expect(names(directory)).toEqual([]);
    expect(await qemu.qmp.status()).toBe(state);
  });
});

describe('another client in mid-save', () => {
  test.for([
    { name: 'resumes the guest', commands: ['cont'] },
    { name: 'resumes and stops the guest', commands: ['cont', 'stop'] },
    { name: 'resets the guest', commands: ['system_reset'] },
  ])('that $name spoils the image, and it is said', async ({ commands }) => {
    const cleanup = testCleanup();
    const qemu = await largeGuest(cleanup);
    const directory = diskDirectory(cleanup);
    const image = join(directory, 'image');
    const save = start(['save', '--qmp', qemu.socket, ...SLOWLY, '--json', image]);
    await midSave(save, image);
    const other = await Qmp.connect(qemu.otherSocket);
    for (const command of commands) await other.execute(command);
    const result = await save.done;
    await other.close();
    expect(result.status).toBe(5);
    expect(report(result)).toMatchObject({ ok: false, error: { code: 'E_GUEST_RAN' } });
    expect(names(directory)).toEqual([]);
  });
});

test('mapram killed at random moments leaves a whole image or none, and a guest that can go on', async () => {
  const cleanup = testCleanup();
  const qemu = await largeGuest(cleanup, 512);
  const directory = diskDirectory(cleanup);
  const image = join(directory, 'image');
  const line = ['save', '--qmp', qemu.socket, image];
  const { status, milliseconds } = await run(line);
  expect(status).toBe(0);
  await qemu.qmp.execute('cont');
  let published = 0;
  for (let round = 0; round < 24; round++) {
    rmSync(image, { force: true });
    const save = start(line);
    // The moments cover the run evenly, and a random part of a step keeps them from being always the same.
    await sleep(((round + Math.random()) / 24) * milliseconds);
    save.child.kill('SIGKILL');
    await save.done;
    const left = names(directory);
    expect(['', 'image', 'image.partial']).toContain(left.join(' '));
    if (left.includes('image')) {
      published++;
      // The save pauses the guest and leaves it so: memory is still what the image was made of.
      await expectSameRam(qemu, image, { canonical: true });
    }
    if ((await qemu.qmp.status()) !== 'running') await qemu.qmp.execute('cont');
    expect(await qemu.qmp.status()).toBe('running');
  }
  console.log(`killed 24 times, after publishing ${published} times`);
  await succeed(['save', '--qmp', qemu.socket, '--force', image]);
  expect(names(directory)).toEqual(['image']);
  await expectSameRam(qemu, image, { canonical: true });
});

describe('a restore after its first write', () => {
  /** A restore that is under way, into memory that shows how far it is. */
  async function midRestore(cleanup: Cleanup): Promise<{ copy: Qemu; restore: CliRun }> {
    const source = await largeGuest(cleanup);
    await source.qmp.execute('stop');
    const image = join(diskDirectory(cleanup), 'image');
    await succeed(['save', '--qmp', source.socket, image]);
    const memory = ['-object', 'memory-backend-ram,id=ram0,size=1024M'];
    const copy = await Qemu.start({ machine: 'q35', mebibytes: 1024, memory, incoming: true }, cleanup);
    const options = ['--method', 'fill', '--then', 'resume', ...SLOWLY, '--json'];
    const restore = start(['restore', '--qmp', copy.socket, ...options, image]);
    await waitFor('the first writes', 120_000, () => (residentBytes(copy) > 256 << 20 ? true : undefined), 2);
    return { copy, restore };
  }

  test('that is interrupted says that QEMU is unusable, and it never runs', async () => {
    const { copy, restore } = await midRestore(testCleanup());
    restore.child.kill('SIGINT');
    const result = await restore.done;
    expect(result.status).toBe(130);
    expect(report(result)).toMatchObject({ ok: false, guestState: 'unusable' });
    expect(await copy.qmp.status()).toBe('inmigrate');
  });

  test('that is killed leaves a QEMU that never runs', async () => {
    const { copy, restore } = await midRestore(testCleanup());
    restore.child.kill('SIGKILL');
    await restore.done;
    expect(await copy.qmp.status()).toBe('inmigrate');
  });

  test('whose QEMU is killed fails, and says that a new QEMU is needed', async () => {
    const { copy, restore } = await midRestore(testCleanup());
    copy.child.kill('SIGKILL');
    const result = await restore.done;
    expect(report(result)).toMatchObject({ error: { code: 'E_RESTORE_INCOMPLETE' }, guestState: 'gone' });
    expect(result.status).toBe(1);
  });
});

/** Memory that a process holds. */
function residentBytes(qemu: Qemu): number {
  return Number(readFileSync(`/proc/${qemu.pid}/statm`, 'utf8').split(' ')[1]) * 4096;
}
