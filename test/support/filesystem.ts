import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdirSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from './cleanup.ts';
import { diskDirectory } from './paths.ts';

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
