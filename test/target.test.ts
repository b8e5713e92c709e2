import { execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  closeSync,
  linkSync,
  openSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, type TestContext, test } from 'vitest';
import { Cleanup } from './support/cleanup.ts';
import { failWith, report, run, start, succeed } from './support/cli.ts';
import { ext4, IS_ROOT, tmpfs } from './support/filesystem.ts';
import { largeGuest, midSave, names, pausedGuest, SLOWLY, SMALL, testCleanup } from './support/fixtures.ts';
import { expectSameRam } from './support/oracle.ts';
import { CLI, diskDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';
import { waitFor } from './support/wait.ts';

// The image file: it appears whole or not at all, and what stands in its place is not harmed.

const cleanup = new Cleanup();
let qemu: Qemu;

beforeAll(async () => {
  qemu = await pausedGuest(cleanup);
});
afterAll(() => cleanup.run());

const save = (...words: string[]): string[] => ['save', '--qmp', qemu.socket, ...words];

test('a new image is its owner’s only, and alone in its directory', async () => {
  const directory = diskDirectory(testCleanup());
  await succeed(save(join(directory, 'image')));
  expect(names(directory)).toEqual(['image']);
  expect(statSync(join(directory, 'image')).mode & 0o777).toBe(0o600);
});

describe('a file that exists', () => {
  test('is not replaced', async () => {
    const directory = diskDirectory(testCleanup());
    const image = join(directory, 'image');
    writeFileSync(image, 'precious');
    const failure = await failWith(1, 'E_TARGET_EXISTS', save(image));
    expect(failure).toMatchObject({ guestState: 'untouched', error: { path: image } });
    expect(failure.error?.message).toMatch(/replacing it was not asked for/);
    expect(readFileSync(image, 'utf8')).toBe('precious');
    expect(names(directory)).toEqual(['image']);
  });

  test('is replaced with --force', async () => {
    const image = join(diskDirectory(testCleanup()), 'image');
    writeFileSync(image, 'old');
    await succeed(save('--force', image));
    await expectSameRam(qemu, image, { canonical: true });
  });

  test('stays as it is if a save with --force fails', async () => {
    const directory = diskDirectory(testCleanup());
    const image = join(directory, 'image');
    writeFileSync(image, 'precious');
    writeFileSync(`${image}.partial`, '');
    await withLock(`${image}.partial`, () => failWith(1, 'E_TARGET_BUSY', save('--force', image)));
    expect(readFileSync(image, 'utf8')).toBe('precious');
  });

  test('may be a symlink: without --force it is refused, with it replaced and never followed', async () => {
    const directory = diskDirectory(testCleanup());
    const image = join(directory, 'image');
    const elsewhere = join(directory, 'elsewhere');
    writeFileSync(elsewhere, 'precious');
    symlinkSync(elsewhere, image);
    await failWith(1, 'E_TARGET_EXISTS', save(image));
    expect(readlinkSync(image)).toBe(elsewhere);
    await succeed(save('--force', image));
    expect(readFileSync(elsewhere, 'utf8')).toBe('precious');
    await expectSameRam(qemu, image, { canonical: true });
  });

  test('may be a symlink to nothing', async () => {
    const directory = diskDirectory(testCleanup());
    const image = join(directory, 'image');
    symlinkSync(join(directory, 'nothing'), image);
    await failWith(1, 'E_TARGET_EXISTS', save(image));
    expect(names(directory)).toEqual(['image']);
  });
});

describe('the disk of a guest', () => {
  /** A running guest with a disk in a file. */
  async function guestWithDisk(local: Cleanup): Promise<{ guest: Qemu; disk: string }> {
    const disk = join(diskDirectory(local), 'disk');
    writeFileSync(disk, Buffer.alloc(1 << 20, 'data'));
    const extra = ['-drive', `file=${disk},format=raw,if=virtio`];
    return { guest: await Qemu.start({ ...SMALL, extra }, local), disk };
  }

  test('is not replaced by its image, nor removed as a leftover, --force or not', async () => {
    const { guest, disk } = await guestWithDisk(testCleanup());
    linkSync(disk, `${disk}.image.partial`);
    for (const image of [disk, `${disk}.image`]) {
      for (const words of [[], ['--force']]) {
        const line = ['save', '--qmp', guest.socket, '--then', 'quit', ...words, image];
        const failure = await failWith(2, 'E_USAGE', line);
        expect(failure).toMatchObject({ guestState: 'untouched', error: { path: image, field: 'image' } });
        expect(failure.error?.message).toContain(disk);
      }
    }
    expect(statSync(disk).nlink).toBe(2);
    expect(readFileSync(disk, 'utf8')).toMatch(/^(data)+$/);
    expect(await guest.qmp.status()).toBe('running');
  });

  test('is not replaced by the image of another one, for it is locked', async () => {
    const { disk } = await guestWithDisk(testCleanup());
    const failure = await failWith(1, 'E_TARGET_BUSY', save('--force', disk));
    expect(failure).toMatchObject({ guestState: 'untouched', error: { path: disk } });
    expect(readFileSync(disk, 'utf8')).toMatch(/^(data)+$/);
  });
});

describe('a partial image', () => {
  test('that a dead save left is replaced', async () => {
    const directory = diskDirectory(testCleanup());
    const image = join(directory, 'image');
    writeFileSync(`${image}.partial`, Buffer.alloc(1 << 20, 0xff));
    await succeed(save(image));
    expect(names(directory)).toEqual(['image']);
    await expectSameRam(qemu, image, { canonical: true });
  });

  test('that a living save holds locked is left alone', async () => {
    const directory = diskDirectory(testCleanup());
    const image = join(directory, 'image');
    writeFileSync(`${image}.partial`, 'another one’s');
    const failure = await withLock(`${image}.partial`, () => failWith(1, 'E_TARGET_BUSY', save(image)));
    expect(failure.guestState).toBe('untouched');
    expect(readFileSync(`${image}.partial`, 'utf8')).toBe('another one’s');
  });

  test('that is a symlink is not followed', async () => {
    const directory = diskDirectory(testCleanup());
    const image = join(directory, 'image');
    const elsewhere = join(directory, 'elsewhere');
    writeFileSync(elsewhere, 'precious');
    symlinkSync(elsewhere, `${image}.partial`);
    await run(save(image));
    expect(readFileSync(elsewhere, 'utf8')).toBe('precious');
  });
});

test('a name that is not UTF-8 is refused, not written under another one', async () => {
  const directory = diskDirectory(testCleanup());
  const words = ['save', '--json', '--qmp', qemu.socket];
  // Node cannot pass such a word on; a shell can.
  const line = `exec "$@" "$(printf '${directory}/caf\\351')"`;
  const shell = ['sh', '-c', line, 'sh', process.execPath, CLI, ...words];
  const { status, stdout } = spawnSync(shell[0] as string, shell.slice(1), { encoding: 'utf8' });
  expect(status).toBe(2);
  expect(JSON.parse(stdout)).toMatchObject({ ok: false, error: { code: 'E_USAGE', field: 'image' } });
  expect(names(directory)).toEqual([]);
});

test('a directory that is not there', async () => {
  const failure = await failWith(1, 'E_NOT_FOUND', save(join(diskDirectory(testCleanup()), 'none', 'image')));
  expect(failure.guestState).toBe('untouched');
});

/** Runs `action` while another process holds the file's lock. */
async function withLock<T>(path: string, action: () => Promise<T>): Promise<T> {
  const holder = spawn('flock', ['--exclusive', path, 'sh', '-c', 'echo held; exec sleep 60'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise((resolve) => holder.stdout.once('data', resolve));
  const children = readFileSync(`/proc/${holder.pid}/task/${holder.pid}/children`, 'utf8').trim().split(' ');
  try {
    return await action();
  } finally {
    holder.kill('SIGKILL');
    for (const child of children) process.kill(Number(child), 'SIGKILL');
  }
}

describe('a full disk', () => {
  const needRoot = (context: TestContext): void => {
    if (!IS_ROOT) context.skip('mounting a small file system needs root');
  };

  test.for([
    { name: 'ext4', mount: ext4 },
    { name: 'tmpfs', mount: tmpfs },
  ])('is found out before the guest is stopped ($name)', async ({ mount }, context) => {
    needRoot(context);
    const local = testCleanup();
    const guest = await largeGuest(local, 256);
    const directory = mount(local, 128);
    const before = names(directory);
    const seen = guest.qmp.events.length;
    const failure = await failWith(1, 'E_NO_SPACE', [
      'save',
      '--qmp',
      guest.socket,
      join(directory, 'image'),
    ]);
    expect(names(directory)).toEqual(before);
    expect(await guest.qmp.status()).toBe('running');
    expect(['running', 'untouched']).toContain(failure.guestState);
    expect(guest.qmp.events.slice(seen).map(({ event }) => event)).not.toContain('STOP');
  });

  test('in mid-save leaves nothing behind and the guest running', async (context) => {
    needRoot(context);
    const local = testCleanup();
    const guest = await largeGuest(local);
    const directory = ext4(local, 2048);
    const before = names(directory);
    const image = join(directory, 'image');
    const running = start(['save', '--qmp', guest.socket, ...SLOWLY, '--json', image]);
    await midSave(running, image);
    fillDisk(join(directory, 'filler'), 1400);
    const result = await running.done;
    rmSync(join(directory, 'filler'));
    expect(result.status).toBe(1);
    expect(report(result)).toMatchObject({ ok: false, error: { code: 'E_NO_SPACE' }, guestState: 'running' });
    expect(names(directory)).toEqual(before);
    await waitFor('the guest to run', 60_000, async () =>
      (await guest.qmp.status()) === 'running' ? true : undefined,
    );
  });
});

/** Takes the space of a disk away, as far as there is any. */
function fillDisk(path: string, mebibytes: number): void {
  execFileSync('fallocate', ['--length', `${mebibytes}M`, path]);
  const file = openSync(path, 'a');
  try {
    for (;;) writeSync(file, Buffer.alloc(1 << 20));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  } finally {
    closeSync(file);
  }
}
