import { fstat } from 'node:fs';
import { lstat, stat } from 'node:fs/promises';
import { promisify } from 'node:util';
import { asMapramError, MapramError } from '../errors.ts';
import { readIfThere } from '../guest/proc.ts';
import type { MemorySave } from '../options.ts';

/** What identifies a file. */
interface FileId {
  dev: bigint;
  ino: bigint;
  rdev: bigint;
  isBlockDevice(): boolean;
}

/** Where a range of a process's memory lies. */
interface Range {
  address: number;
  usedLength: number;
}

const BIG = { bigint: true } as const;

/**
 * Refuses to replace, by force, a file that holds the memory to be saved, or to write to a device that does.
 *
 * @throws {MapramError} E_USAGE
 */
export async function requireTargetApart({ image, force, memory }: MemorySave): Promise<void> {
  const target = await replacedFile(image, force);
  if (target === undefined) return;
  for (const { file, fd, pid, address, length } of memory) {
    // A source that cannot be looked at is reported, with its reason, by the one who opens it.
    if (file !== undefined && isSame(target, await ifThere(stat(file, BIG)))) throw clash(image);
    if (fd !== undefined && isSame(target, await statOf(fd))) throw clash(image);
    if (pid !== undefined && address !== undefined) {
      await requireUnmapped(image, target, pid, [{ address, usedLength: length }]);
    }
  }
}

/**
 * The same for a guest whose RAM is in files.
 *
 * @throws {MapramError} E_USAGE
 */
export async function requireTargetApartFromGuest(
  { image, force }: { image: string; force: boolean },
  pid: number,
  blocks: readonly Range[],
): Promise<void> {
  const target = await replacedFile(image, force);
  if (target !== undefined) await requireUnmapped(image, target, pid, blocks);
}

/**
 * The file that the image replaces, if there is one. A symbolic link is replaced itself, and what it leads to stays, unless that
 * is a block device.
 */
async function replacedFile(image: string, force: boolean): Promise<FileId | undefined> {
  const found = await ifThere(stat(image, BIG));
  if (found?.isBlockDevice()) return found;
  return force ? ifThere(lstat(image, BIG)) : undefined;
}

async function requireUnmapped(
  image: string,
  target: FileId,
  pid: number,
  ranges: readonly Range[],
): Promise<void> {
  for (const path of await mappedFiles(pid, ranges)) {
    // Seen from the process's own root, for it may be in a container.
    if (isSame(target, await ifThere(stat(`/proc/${pid}/root${path}`, BIG)))) throw clash(image);
  }
}

/** Paths of the files that the process has mapped into these ranges, as /proc/PID/maps names them. */
async function mappedFiles(pid: number, ranges: readonly Range[]): Promise<Set<string>> {
  const maps = await readIfThere(`/proc/${pid}/maps`);
  const paths = new Set<string>();
  for (const match of maps.matchAll(/^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(\/.*)$/gm)) {
    const [start, end] = [Number.parseInt(match[1] as string, 16), Number.parseInt(match[2] as string, 16)];
    const isInRange = ranges.some(({ address, usedLength }) => address < end && start < address + usedLength);
    if (isInRange) paths.add(match[3] as string);
  }
  return paths;
}

/** What can be seen of a file; undefined if there is none, or none that we may see. Any other failure leaves it open. */
async function ifThere<T>(look: Promise<T>): Promise<T | undefined> {
  return look.catch((error: unknown) => {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (['ENOENT', 'ENOTDIR', 'ELOOP', 'EACCES', 'ESRCH'].includes(code)) return undefined;
    throw asMapramError(error);
  });
}

async function statOf(fd: number): Promise<FileId | undefined> {
  return promisify(fstat)(fd, BIG).catch(() => undefined);
}

function isSame(target: FileId, other: FileId | undefined): boolean {
  if (other === undefined) return false;
  // One device may have many nodes.
  if (target.isBlockDevice()) return other.isBlockDevice() && target.rdev === other.rdev;
  return target.dev === other.dev && target.ino === other.ino;
}

function clash(image: string): MapramError {
  return new MapramError('E_USAGE', 'The image would replace a file that holds the memory to be saved', {
    path: image,
    field: 'image',
  });
}
