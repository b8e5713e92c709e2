import { readFileSync, realpathSync, statSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { autoEngine, directAlignment, freeBytes, ImageFile } from '../native.ts';
import { DEFAULT_LOAD } from '../options.ts';
import { type Check, type Finding, fail, failed, ok, warn } from './check.ts';
import { findFileSystem, roundly } from './judge.ts';

/** What the directory's file system offers; with the addon, a file of a few bytes is written there and removed again. */
export async function checkDirectory(directory: string, hasAddon: boolean): Promise<Check[]> {
  const findings: [name: string, finding: Finding][] = [['file-system', fileSystem(directory)]];
  if (hasAddon && findings.every(([, finding]) => finding.status !== 'fail')) {
    findings.push(
      ['direct-io', directIo(directory)],
      ['free-space', freeSpace(directory)],
      ['publishing', await publishing(directory)],
    );
  }
  return findings.map(([name, finding]) => ({ name, area: 'host', ...finding }));
}

function fileSystem(directory: string): Finding {
  try {
    const path = realpathSync(directory);
    if (!statSync(path).isDirectory()) return fail(`${path} is no directory`, 'name a directory by --dir');
    const type = findFileSystem(readFileSync('/proc/self/mountinfo', 'utf8'), path);
    if (type !== 'tmpfs' && type !== 'ramfs') return ok(`${path} is on ${type}`);
    return warn(`${path} is on ${type}: images there take the host's memory`, 'choose a directory on a disk');
  } catch (error) {
    const isMissing = error instanceof Error && 'code' in error && error.code === 'ENOENT';
    const finding = failed(`${directory} cannot be used: `, error, 'create it, or name another one by --dir');
    return isMissing ? { ...finding, code: 'E_NOT_FOUND' } : finding;
  }
}

function directIo(directory: string): Finding {
  try {
    const { supported, memory, offset } = directAlignment(directory);
    if (supported)
      return ok(`direct I/O works; it aligns memory to ${memory} bytes and offsets to ${offset}`);
    return warn('this file system has no direct I/O', 'use --no-direct, or another directory');
  } catch (error) {
    return failed('direct I/O cannot be probed: ', error, 'make the directory writable for this user');
  }
}

function freeSpace(directory: string): Finding {
  try {
    const free = freeBytes(directory);
    const message = `${roundly(free)} are free`;
    if (free >= 2 ** 30) return ok(message);
    return warn(message, "an image takes as much space as the guest's memory holds data; make room");
  } catch (error) {
    return failed('the free space cannot be asked for: ', error, 'see the cause');
  }
}

/** Takes a small image file through its whole life: create, lock, write, sync, rename without replacing. */
async function publishing(directory: string): Promise<Finding> {
  const path = join(directory, `.mapram-doctor-${process.pid}`);
  let file: ImageFile | undefined;
  try {
    file = ImageFile.create(path, false, false, autoEngine(DEFAULT_LOAD));
    await file.finish([{ offset: 0, bytes: new Uint8Array(4096) }], 4096).run();
    await file.publish().run();
    return ok('a file can be created, synced and renamed without replacing another one');
  } catch (error) {
    return failed(
      'an image cannot be written there: ',
      error,
      'make the directory writable for this user, or use a file system with RENAME_NOREPLACE',
    );
  } finally {
    await file
      ?.discard()
      .run()
      .catch(() => {});
    await rm(path, { force: true }).catch(() => {});
  }
}
