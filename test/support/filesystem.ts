import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { closeSync, ftruncateSync, mkdirSync, openSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'vitest';
import type { Cleanup } from './cleanup.ts';
import { diskDirectory } from './paths.ts';
import { waitFor } from './wait.ts';

/** True where file systems can be mounted and huge pages reserved. */
export const IS_ROOT: boolean = process.getuid?.() === 0;

/** A fresh ext4 of its own in a sparse file; returns the directory where it is mounted. */
export function ext4(cleanup: Cleanup, mebibytes: number, mountOptions = 'defaults'): string {
  const directory = diskDirectory(cleanup);
  const disk = join(directory, 'disk');
  const file = openSync(disk, 'w');
  ftruncateSync(file, mebibytes * 2 ** 20);
  closeSync(file);
  execFileSync('mkfs.ext4', ['-q', '-m', '0', disk]);
  return mounted(cleanup, join(directory, 'mount'), ['-o', `loop,${mountOptions}`, disk]);
}

/** A tmpfs of its own with a size limit, of huge pages if asked for. */
export function tmpfs(cleanup: Cleanup, mebibytes: number, huge: 'never' | 'always' = 'never'): string {
  const directory = diskDirectory(cleanup);
  const options = `size=${mebibytes}m,huge=${huge}`;
  return mounted(cleanup, join(directory, 'mount'), ['-t', 'tmpfs', '-o', options, 'tmpfs']);
}

/** A hugetlbfs of 2 MiB pages. */
export function hugetlbfs(cleanup: Cleanup): string {
  const directory = diskDirectory(cleanup);
  return mounted(cleanup, join(directory, 'mount'), ['-t', 'hugetlbfs', '-o', 'pagesize=2M', 'hugetlbfs']);
}

/** Mounts by these words of mount(8); returns the directory. */
export function mounted(cleanup: Cleanup, directory: string, words: string[]): string {
  mkdirSync(directory);
  execFileSync('mount', [...words, directory], { stdio: 'pipe' });
  cleanup.add(() => {
    execFileSync('umount', ['--lazy', directory]);
    rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
  });
  return directory;
}

/** A directory on a FUSE server, which has neither O_TMPFILE nor RENAME_NOREPLACE, and that server. */
export async function fuse(cleanup: Cleanup): Promise<{ directory: string; server: ChildProcess }> {
  const behind = diskDirectory(cleanup);
  const directory = join(diskDirectory(cleanup), 'mount');
  mkdirSync(directory);
  const server = spawn('unionfs', ['-f', `${behind}=RW`, directory], { stdio: 'ignore' });
  const ended = new Promise((resolve) => server.once('exit', resolve));
  cleanup.add(async () => {
    execFileSync('umount', ['--lazy', directory]);
    server.kill();
    await ended;
  });
  const device = statSync(behind).dev;
  const isMounted = (): true | undefined => (statSync(directory).dev === device ? undefined : true);
  await waitFor('the FUSE server', 10_000, isMounted);
  return { directory, server };
}

/** Skips a test that cannot run without these programs. */
export function needTools(context: TestContext, tools: string[]): void {
  for (const tool of tools) {
    try {
      execFileSync('which', [tool], { stdio: 'pipe' });
    } catch {
      context.skip(`${tool} is not installed`);
    }
  }
}
