import { readFile, realpath, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { following } from '../errors.ts';
import { PAGE_BYTES } from '../image/index.ts';
import { chooseEngine, type DirectAlignment, freeBytes, ImageFile } from '../native.ts';
import { DEFAULT_LOAD } from '../options.ts';
import { formatBytes } from '../units.ts';
import { type Checklist, type Finding, fail, ok, warn } from './check.ts';
import { findFileSystem } from './judge.ts';

/** What the directory's file system offers; with the engine, a file of a few bytes is written there and removed again. */
export async function checkDirectory(list: Checklist, directory: string, hasEngine: boolean): Promise<void> {
  await list.look('file-system', 'create it, or name another one by --dir', () => fileSystem(directory));
  if (!hasEngine || list.hasFailed) return;
  const alignment = await checkPublishing(list, directory);
  list.note('direct-io', directIo(alignment));
  await list.look(
    'free-space',
    'see the cause',
    async () => freeSpace(await freeBytes(directory)),
    'the free space cannot be asked for: ',
  );
}

async function fileSystem(directory: string): Promise<Finding> {
  const path = await realpath(directory).catch((error: unknown) => {
    throw following(undefined, `${directory} cannot be used:`, error);
  });
  if (!(await stat(path)).isDirectory()) return fail(`${path} is no directory`, 'name a directory by --dir');
  const type = findFileSystem(await readFile('/proc/self/mountinfo', 'utf8'), path);
  if (type !== 'tmpfs' && type !== 'ramfs') return ok(`${path} is on ${type}`);
  return warn(`${path} is on ${type}: images there take the host's memory`, 'choose a directory on a disk');
}

/**
 * Takes a small image file through its whole life: create, lock, write, sync, rename without replacing.
 *
 * @returns what direct I/O needs there; undefined if no file can be created.
 */
async function checkPublishing(list: Checklist, directory: string): Promise<DirectAlignment | undefined> {
  const path = join(directory, `.mapram-doctor-${process.pid}`);
  const advice = 'make the directory writable, or choose one on a file system that has RENAME_NOREPLACE';
  let alignment: DirectAlignment | undefined;
  const publish = async (): Promise<Finding> => {
    const file = await ImageFile.create(path, false, false, await chooseEngine('auto', DEFAULT_LOAD));
    alignment = file.alignment;
    try {
      await file.finish([{ offset: 0, bytes: new Uint8Array(PAGE_BYTES) }], PAGE_BYTES).run();
      await file.publish().run();
      return ok('a file can be created, synced and renamed without replacing another one');
    } finally {
      // What is found counts, whatever comes of tidying up.
      const discarding = file.discard().run();
      await discarding.catch(() => {});
      await rm(path, { force: true }).catch(() => {});
    }
  };
  await list.look('publishing', advice, publish, 'an image cannot be written there: ');
  return alignment;
}

/** As the file that was created there showed. */
function directIo(alignment: DirectAlignment | undefined): Finding {
  if (alignment === undefined) {
    return warn('direct I/O cannot be probed, for no file can be created', 'see the check of publishing');
  }
  const { supported, memory, offset } = alignment;
  if (!supported) return warn('this file system has no direct I/O', 'use --no-direct, or another directory');
  const units = `it aligns memory to ${memory} bytes and offsets to ${offset}`;
  if (Math.max(memory, offset) <= PAGE_BYTES) return ok(`direct I/O works; ${units}`);
  return warn(`direct I/O cannot write single pages: ${units}`, 'use --no-direct, or another directory');
}

function freeSpace(free: number): Finding {
  if (free === Number.POSITIVE_INFINITY)
    return ok('how much is free is unknown: the file system does not say');
  const message = `${formatBytes(free)} are free`;
  if (free >= 2 ** 30) return ok(message);
  return warn(message, "an image takes as much space as the guest's memory holds data; make room");
}
