import { readFileSync, realpathSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { autoEngine, directAlignment, freeBytes, ImageFile } from '../native.ts';
import { DEFAULT_LOAD } from '../options.ts';
import { type Check, type Finding, fail, messageOf, ok, warn } from './check.ts';
import { findFileSystem } from './judge.ts';

/** What the directory's file system offers; a file of a few bytes is written there and removed again. */
export async function checkDirectory(directory: string): Promise<Check[]> {
  const findings: [name: string, finding: Finding][] = [['file-system', fileSystem(directory)]];
  if (findings.every(([, finding]) => finding.status !== 'fail')) {
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
    const type = findFileSystem(readFileSync('/proc/self/mountinfo', 'utf8'), path);
    if (type !== 'tmpfs' && type !== 'ramfs') return ok(`${path} is on ${type}`);
    return warn(`${path} is on ${type}: images there take the host's memory`, 'choose a directory on a disk');
  } catch (error) {
    return fail(
      `${directory} cannot be used: ${messageOf(error)}`,
      'create it, or name another one by --dir',
    );
  }
}

function directIo(directory: string): Finding {
  try {
    const { supported, memory, offset } = directAlignment(directory);
    if (supported)
      return ok(`direct I/O works; it aligns memory to ${memory} bytes and offsets to ${offset}`);
    return warn('this file system has no direct I/O', 'use --no-direct, or another directory');
  } catch (error) {
    return fail(
      `direct I/O cannot be probed: ${messageOf(error)}`,
      'make the directory writable for this user',
    );
  }
}

function freeSpace(directory: string): Finding {
  const gibibytes = freeBytes(directory) / 1024 ** 3;
  const message = `${gibibytes.toFixed(1)} GiB are free`;
  if (gibibytes >= 1) return ok(message);
  return warn(message, "an image takes as much space as the guest's memory holds data; make room");
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
    return fail(
      `an image cannot be written there: ${messageOf(error)}`,
      'make the directory writable for this user, or use a file system with RENAME_NOREPLACE',
    );
  } finally {
    await file?.discard();
    rmSync(path, { force: true });
  }
}
