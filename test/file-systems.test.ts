import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdirSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import type { Cleanup } from './support/cleanup.ts';
import { type CliReport, run, succeed } from './support/cli.ts';
import { loopDevice } from './support/device.ts';
import { ext4, fuse, IS_ROOT, mounted, needTools, tmpfs } from './support/filesystem.ts';
import { largeGuest, names, pausedGuest, testCleanup, waitingQemu } from './support/fixtures.ts';
import { printed, startProgram } from './support/library.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory, memoryDirectory } from './support/paths.ts';

// File systems that images are written to. On each a save works, or it is refused before the guest is stopped and says what to do;
// and doctor foretells which.

/** Kinds of file systems: each is made in a file of its own and mounted. */
const FILE_SYSTEMS: {
  name: string;
  tools: string[];
  make: (cleanup: Cleanup) => string | Promise<string>;
}[] = [
  { name: 'btrfs', tools: ['mkfs.btrfs'], make: (cleanup) => onDisk(cleanup, ['mkfs.btrfs', '-q']) },
  { name: 'xfs', tools: ['mkfs.xfs'], make: (cleanup) => onDisk(cleanup, ['mkfs.xfs', '-q']) },
  { name: 'overlayfs on ext4', tools: [], make: (cleanup) => overlay(cleanup, ext4(cleanup, 512)) },
  { name: 'overlayfs on tmpfs', tools: [], make: (cleanup) => overlay(cleanup, tmpfs(cleanup, 512)) },
  { name: 'FUSE', tools: ['unionfs'], make: async (cleanup) => (await fuse(cleanup)).directory },
  { name: 'ext4 on a disk of 4 KiB sectors', tools: ['mkfs.ext4'], make: fourKibSectors },
  { name: 'tmpfs', tools: [], make: (cleanup) => tmpfs(cleanup, 512) },
  { name: 'ramfs, which does not say how much is free', tools: [], make: ramfs },
];

function diskFile(cleanup: Cleanup, mebibytes: number, directory = diskDirectory(cleanup)): string {
  const disk = join(directory, 'disk');
  const file = openSync(disk, 'w');
  ftruncateSync(file, mebibytes * 2 ** 20);
  closeSync(file);
  return disk;
}

function onDisk(
  cleanup: Cleanup,
  [program = '', ...words]: string[],
  disk: string = diskFile(cleanup, 512),
): string {
  execFileSync(program, [...words, disk], { stdio: 'pipe' });
  return mounted(cleanup, join(diskDirectory(cleanup), 'mount'), ['-o', 'loop', disk]);
}

function overlay(cleanup: Cleanup, upper: string): string {
  for (const name of ['lower', 'upper', 'work']) mkdirSync(join(upper, name));
  const [lower, above, work] = ['lower', 'upper', 'work'].map((name) => join(upper, name));
  const options = `lowerdir=${lower},upperdir=${above},workdir=${work}`;
  return mounted(cleanup, join(diskDirectory(cleanup), 'mount'), ['-t', 'overlay', '-o', options, 'overlay']);
}

function fourKibSectors(cleanup: Cleanup): string {
  const device = loopDevice(cleanup, 512, 4096);
  execFileSync('mkfs.ext4', ['-q', device]);
  return mounted(cleanup, join(diskDirectory(cleanup), 'mount'), [device]);
}

function ramfs(cleanup: Cleanup): string {
  return mounted(cleanup, join(diskDirectory(cleanup), 'mount'), ['-t', 'ramfs', 'ramfs']);
}

beforeEach((context) => {
  if (!IS_ROOT) context.skip('mounting a file system needs root');
});

describe('a file system', () => {
  test.for(FILE_SYSTEMS)('$name', async ({ tools, make }, context) => {
    needTools(context, tools);
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const directory = await make(cleanup);
    const image = join(directory, 'image');
    const before = names(directory);
    const doctor = await run(['doctor', '--json', '--dir', directory]);
    const { checks } = JSON.parse(doctor.stdout) as { checks: { name: string; status: string }[] };
    const status = (name: string): string | undefined => checks.find((check) => check.name === name)?.status;
    expect(status('publishing')).toBe('ok');
    expect(names(directory)).toEqual(before);

    const saved = await run(['save', '--qmp', source.socket, '--json', image]);
    if (status('direct-io') === 'ok') {
      expect(saved.stdout).toContain('"ok":true');
    } else {
      const failure = JSON.parse(saved.stdout) as CliReport;
      expect(failure).toMatchObject({ guestState: 'untouched', error: { code: 'E_HOST_UNSUPPORTED' } });
      expect(failure.error?.message).toContain('go without it');
      expect(names(directory)).toEqual(before);
      await succeed(['save', '--qmp', source.socket, '--no-direct', image]);
    }
    await expectSameRam(source, image, { canonical: true });
    expect((await run(['save', '--qmp', source.socket, image])).stderr).toContain('exists already');
    const restored = await waitingQemu(cleanup);
    const direct = status('direct-io') === 'ok' ? [] : ['--no-direct'];
    await succeed(['restore', '--qmp', restored.socket, ...direct, image]);
    await expectSameRam(restored, image);
  });
});

describe('XFS, which frees removed files in its own time', () => {
  test('is waited for while the guest runs', async (context) => {
    needTools(context, ['mkfs.xfs', 'xfs_io']);
    const cleanup = testCleanup();
    const guest = await largeGuest(cleanup, 512);
    // In memory, where making a scattered file takes no time.
    const disk = diskFile(cleanup, 1300, memoryDirectory(cleanup));
    const directory = onDisk(cleanup, ['mkfs.xfs', '-q'], disk);
    const scattered = join(directory, 'scattered');
    // 80,000 extents, which take long to free.
    const extents = 80_000;
    const punches = Array.from({ length: extents }, (_, index) => `fpunch ${index * 8192} 4096`);
    const commands = ['falloc 0 655360000', ...punches, 'fsync', ''].join('\n');
    execFileSync('xfs_io', ['-f', scattered], { input: commands, stdio: ['pipe', 'ignore', 'pipe'] });
    execFileSync('fallocate', ['--length', '600M', join(directory, 'filler')]);
    rmSync(scattered);
    const seen = guest.qmp.events.length;
    await succeed(['save', '--qmp', guest.socket, '--then', 'resume', join(directory, 'image')]);
    expect(guest.qmp.events.slice(seen).map(({ event }) => event)).toContain('STOP');
  });
});

describe('a file system that hangs', () => {
  const SAVE = `
    import { save } from 'mapram';
    const [image, file] = process.argv.slice(1);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 10);
    setTimeout(() => console.log(ticks), 1000);
    const memory = [{ name: 'ram', file, length: 1 << 20 }];
    await save({ memory, machine: 'm', image });
    clearInterval(timer);
    console.log('saved');`;

  test('does not hang the program that uses the library', async () => {
    const cleanup = testCleanup();
    const directory = ext4(cleanup, 64);
    const memory = join(diskDirectory(cleanup), 'memory');
    writeFileSync(memory, Buffer.alloc(1 << 20, 1));
    // Frozen, it finds files but creates none.
    execFileSync('fsfreeze', ['--freeze', directory]);
    let isFrozen = true;
    const thaw = (): void => {
      if (isFrozen) execFileSync('fsfreeze', ['--unfreeze', directory]);
      isFrozen = false;
    };
    cleanup.add(thaw);
    const program = startProgram(cleanup, SAVE, join(directory, 'image'), memory);
    const watchdog = setTimeout(thaw, 30_000);
    const ticks = Number(await printed(program));
    clearTimeout(watchdog);
    expect(isFrozen).toBe(true);
    expect(ticks).toBeGreaterThan(10);
    const saved = printed(program);
    thaw();
    expect(await saved).toBe('saved');
  });
});
