import { type BigIntStats, fstat } from 'node:fs';
import { lstat, readdir, readFile, readlink, stat } from 'node:fs/promises';
import { promisify } from 'node:util';
import { asMapramError, MapramError } from './errors.ts';
import { readIfThere } from './guest/proc.ts';
import type { MemoryBlock } from './options.ts';
import { within } from './within.ts';

/** The names that a file, and each thing that it lies in, has in this module, its own one first; none if it cannot be looked at. */
type Lineage = readonly string[];

const BIG = { bigint: true } as const;
/** How long one file that the guest has open is waited for. */
const LOOK_TIMEOUT_MS = 10_000;
/** Mounts, by their number in mountinfo, of file systems that ask a server what a file is, and hang when it is gone. */
const SERVED = /^(\d+) .* - (?:9p|afs|ceph|cifs|fuse|lustre|nfs|smb|virtiofs)/gm;

/**
 * Refuses an image whose file or device holds the memory that is to be saved or restored. What cannot be looked at is reported,
 * with its reason, by the one who opens it.
 *
 * @throws {MapramError} E_USAGE
 */
export async function requireApartFromMemory(
  image: string,
  memory: readonly Partial<MemoryBlock>[],
  access: 'saved' | 'restored',
): Promise<void> {
  const targets = access === 'saved' ? await targetsOf(image) : [await lineage(stat(image, BIG))];
  if (targets.length === 0) return;
  const requireApart = async (source: Promise<BigIntStats>): Promise<void> => {
    if (isAmong(targets, await lineage(source))) throw clash(image, 'that holds the memory');
  };
  for (const { file, fd, pid, address, length = 0 } of memory) {
    if (file !== undefined) await requireApart(stat(file, BIG));
    if (fd !== undefined) await requireApart(promisify(fstat)(fd, BIG));
    if (pid === undefined || address === undefined) continue;
    for (const [range, path] of await mappedFiles(pid, address, address + length)) {
      // The kernel's own link knows files that have lost their names; without the right to follow it, the name does, seen from
      // the process's own root, for it may be in a container.
      await requireApart(stat(`/proc/${pid}/map_files/${range}`, BIG));
      await requireApart(stat(`/proc/${pid}/root${path}`, BIG));
    }
  }
}

/**
 * Refuses to replace a file that the guest has open, its disk or its memory, or to write to a device that it has. To be called
 * before anything is done to the target.
 *
 * @throws {MapramError} E_USAGE
 */
export async function requireApartFromGuest(image: string, pid: number, signal: AbortSignal): Promise<void> {
  const targets = await targetsOf(image);
  // Where nothing is replaced, no file of the guest's that hangs is in the way.
  if (targets.length === 0) return;
  const directory = `/proc/${pid}/fd`;
  const fds = (await ifThere(readdir(directory))) ?? [];
  const mounts = (await ifThere(readFile(`/proc/${pid}/mountinfo`, 'utf8'))) ?? '';
  const served = new Set([...mounts.matchAll(SERVED)].map(([, mount]) => mount));
  /** On a server, and none of the targets by its inode number alone, which the kernel knows (since 5.14). */
  const isServedApart = async (fd: string): Promise<boolean> => {
    const facts = (await ifThere(readFile(`/proc/${pid}/fdinfo/${fd}`, 'utf8'))) ?? '';
    const [, mount, inode] = /^mnt_id:\s*(\d+)\nino:\s*(\d+)$/m.exec(facts) ?? [];
    return served.has(mount) && !targets.flat().some((id) => id.endsWith(`/${inode}`));
  };
  // One after the other: each one that does not answer takes a thread of Node's.
  for (const fd of fds) {
    const path = `${directory}/${fd}`;
    const name = (await ifThere(readlink(path))) ?? '';
    // No pipes and sockets.
    if (!name.startsWith('/') || (await isServedApart(fd))) continue;
    const late = async (): Promise<MapramError> =>
      new MapramError('E_IO', `${name}, which the guest has open, does not answer`, { path: name });
    const found = await within(lineage(stat(path, BIG)), { timeoutMs: LOOK_TIMEOUT_MS, late, signal });
    if (isAmong(targets, found)) throw clash(image, `that the guest has open: ${name}`);
  }
}

/**
 * What a save overwrites, replaces or removes. A symbolic link is replaced itself, and what it leads to stays, unless that is a
 * block device.
 */
async function targetsOf(image: string): Promise<Lineage[]> {
  const found = await ifThere(stat(image, BIG));
  const replaced = found?.isBlockDevice() ? Promise.resolve(found) : lstat(image, BIG);
  const targets = [await lineage(replaced), await lineage(lstat(`${image}.partial`, BIG))];
  return targets.filter((target) => target.length > 0);
}

/** Whether one of the targets is, lies in, or holds what `other` is of. Two partitions of one device are apart. */
function isAmong(targets: readonly Lineage[], other: Lineage): boolean {
  const lies = ([own]: Lineage, inside: Lineage): boolean => own !== undefined && inside.includes(own);
  return targets.some((target) => lies(target, other) || lies(other, target));
}

/** What can be seen of a file; undefined if there is none, or none that we may see. Any other failure leaves it open. */
async function ifThere<T>(look: Promise<T>): Promise<T | undefined> {
  return look.catch((error: unknown) => {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (['ENOENT', 'ENOTDIR', 'ELOOP', 'EACCES', 'EPERM', 'ENAMETOOLONG', 'ESRCH'].includes(code))
      return undefined;
    throw asMapramError(error);
  });
}

async function lineage(look: Promise<BigIntStats>): Promise<Lineage> {
  const file = await ifThere(look);
  // One device may have many nodes.
  if (file?.isBlockDevice()) return deviceLineage(deviceNumber(file.rdev));
  return file?.isFile() ? [`${file.dev}/${file.ino}`] : [];
}

/** A partition lies in its device, and a loop device in its file. */
async function deviceLineage(device: string): Promise<Lineage> {
  const sysfs = `/sys/dev/block/${device}`;
  if ((await readIfThere(`${sysfs}/partition`)) !== '') {
    // The link leads into the directory of the whole device.
    return [device, ...(await deviceLineage((await readIfThere(`${sysfs}/../dev`)).trim()))];
  }
  const file = (await readIfThere(`${sysfs}/loop/backing_file`)).replace(/\n$/, '');
  return file === '' ? [device] : [device, ...(await lineage(stat(file, BIG)))];
}

/** A device's number as sysfs has it, from that of stat(2) (makedev(3)). */
function deviceNumber(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n);
  return `${major}:${minor}`;
}

/** The files that the process has mapped between two addresses: the name of each in map_files, and its path as /proc/PID/maps has it. */
async function mappedFiles(pid: number, first: number, end: number): Promise<[string, string][]> {
  const maps = await readIfThere(`/proc/${pid}/maps`);
  const lines = maps.matchAll(/^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(\/.*)$/gm);
  return [...lines].flatMap(([, start = '', stop = '', path = '']): [string, string][] => {
    const [from, to] = [Number.parseInt(start, 16), Number.parseInt(stop, 16)];
    return from < end && first < to ? [[`${from.toString(16)}-${to.toString(16)}`, path]] : [];
  });
}

function clash(image: string, what: string): MapramError {
  const message = `The image is, or would replace, a file ${what}`;
  return new MapramError('E_USAGE', message, { path: image, field: 'image' });
}
