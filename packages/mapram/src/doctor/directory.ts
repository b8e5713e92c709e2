import { readFile, realpath, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { PAGE_BYTES } from '../image/index.ts';
import { autoEngine, type DirectAlignment, freeBytes, ImageFile } from '../native.ts';
import { DEFAULT_LOAD } from '../options.ts';
import { type Check, type Finding, fail, failed, ok, warn } from './check.ts';
import { findFileSystem, roundly } from './judge.ts';

/** What the directory's file system offers; with the addon, a file of a few bytes is written there and removed again. */
export async function checkDirectory(directory: string, hasAddon: boolean): Promise<Check[]> {
  const findings: [name: string, finding: Finding][] = [['file-system', await fileSystem(directory)]];
  if (hasAddon && findings.every(([, finding]) => finding.status !== 'fail')) {
    const { publishing, alignment } = await publish(directory);
    findings.push(
      ['direct-io', directIo(alignment)],
      ['free-space', await freeSpace(directory)],
      ['publishing', publishing],
    );
  }
  return findings.map(([name, finding]) => ({ name, area: 'host', ...finding }));
}

async function fileSystem(directory: string): Promise<Finding> {
  try {
    const path = await realpath(directory);
    if (!(await stat(path)).isDirectory())
      return fail(`${path} is no directory`, 'name a directory by --dir');
    const type = findFileSystem(await readFile('/proc/self/mountinfo', 'utf8'), path);
    if (type !== 'tmpfs' && type !== 'ramfs') return ok(`${path} is on ${type}`);
    return warn(`${path} is on ${type}: images there take the host's memory`, 'choose a directory on a disk');
  } catch (error) {
    const isMissing = error instanceof Error && 'code' in error && error.code === 'ENOENT';
    const finding = failed(`${directory} cannot be used: `, error, 'create it, or name another one by --dir');
    return isMissing ? { ...finding, code: 'E_NOT_FOUND' } : finding;
  }
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

async function freeSpace(directory: string): Promise<Finding> {
  try {
    const free = await freeBytes(directory);
    if (free === Number.POSITIVE_INFINITY)
      return ok('how much is free is unknown: the file system does not say');
    const message = `${roundly(free)} are free`;
    if (free >= 2 ** 30) return ok(message);
    return warn(message, "an image takes as much space as the guest's memory holds data; make room");
  } catch (error) {
    return failed('the free space cannot be asked for: ', error, 'see the cause');
  }
}

/** Takes a small image file through its whole life: create, lock, write, sync, rename without replacing. */
async function publish(directory: string): Promise<{
  publishing: Finding;
  alignment: DirectAlignment | undefined;
}> {
  const path = join(directory, `.mapram-doctor-${process.pid}`);
  let file: ImageFile | undefined;
  try {
    file = await ImageFile.create(path, false, false, await autoEngine(DEFAULT_LOAD));
    await file.finish([{ offset: 0, bytes: new Uint8Array(4096) }], 4096).run();
    await file.publish().run();
    return {
      publishing: ok('a file can be created, synced and renamed without replacing another one'),
      alignment: file.alignment,
    };
  } catch (error) {
    const publishing = failed(
      'an image cannot be written there: ',
      error,
      'make the directory writable for this user, or use a file system with RENAME_NOREPLACE',
    );
    return { publishing, alignment: file?.alignment };
  } finally {
    // What is found counts, whatever comes of tidying up.
    await file
      ?.discard()
      .run()
      .catch(() => {});
    await rm(path, { force: true }).catch(() => {});
  }
}
