import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, statfsSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Cleanup } from '../test/support/cleanup.ts';
import { memoryDirectory } from '../test/support/paths.ts';
import { describeDisk } from './host.ts';
import { needTools } from './tools.ts';

/**
 * Makes a file system on a disk that is faster than this machine's: XFS on a loop device with direct I/O, over a file in tmpfs.
 * It stands in for a fast NVMe drive, so that those who save are measured and not the disk.
 *
 * @param bytes that images will take at most.
 * @returns the directory where it is mounted.
 */
export function fastStandin(bytes: number, cleanup: Cleanup, say: (text: string) => void): string {
  if (process.getuid?.() !== 0) throw new Error('a file system of its own can be mounted only by root');
  needTools(['mkfs.xfs'], say);
  const directory = memoryDirectory(cleanup);
  const disk = join(directory, 'disk');
  const mebibytes = Math.ceil((bytes * 1.1) / 2 ** 20) + 512;
  say(`making a fast disk of ${mebibytes} MiB in memory`);
  // Every block is written once: memory that was never used is slow to touch, and the first round would pay for it.
  execFileSync('dd', ['if=/dev/zero', `of=${disk}`, 'bs=1M', `count=${mebibytes}`, 'status=none']);
  const device = execFileSync('losetup', ['--show', '--find', '--direct-io=on', disk], {
    encoding: 'utf8',
  }).trim();
  cleanup.add(() => {
    execFileSync('losetup', ['--detach', device]);
  });
  // -K: a discard would punch the file's blocks out again.
  execFileSync('mkfs.xfs', ['-q', '-K', device]);
  const mountpoint = join(directory, 'mount');
  mkdirSync(mountpoint);
  execFileSync('mount', [device, mountpoint]);
  // Lazily: on a signal, someone may still be writing there.
  cleanup.add(() => {
    execFileSync('umount', ['--lazy', mountpoint]);
  });
  return mountpoint;
}

/** Reads all of the memory behind `directory` if that is on a {@link fastStandin}; of any other disk, nothing. */
export function touchDisk(directory: string): void {
  const device = basename(describeDisk(directory).device);
  const link = join('/sys/class/block', device, 'loop/backing_file');
  if (!existsSync(link)) return;
  const disk = readFileSync(link, 'utf8').trim();
  if (statfsSync(disk).type !== TMPFS_MAGIC) return;
  execFileSync('dd', [`if=${disk}`, 'of=/dev/null', 'bs=2M', 'status=none']);
}

/** From linux/magic.h. */
const TMPFS_MAGIC = 0x01021994;
