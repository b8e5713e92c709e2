import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'vitest';
import type { Cleanup } from './cleanup.ts';
import { succeed } from './cli.ts';
import { IS_ROOT } from './filesystem.ts';
import { diskDirectory } from './paths.ts';

/** Skips a test where loop devices cannot be made, and says why. */
export function needLoopDevices(context: TestContext): void {
  if (!IS_ROOT) context.skip('making loop devices needs root');
  try {
    execFileSync('losetup', ['--find'], { stdio: 'pipe' });
  } catch (error) {
    context.skip(`there are no loop devices: ${String(error)}`);
  }
}

/** A fresh loop device of zeros; returns its node. */
export function loopDevice(cleanup: Cleanup, mebibytes: number, sectorBytes = 512): string {
  const disk = join(diskDirectory(cleanup), 'disk');
  const file = openSync(disk, 'w');
  ftruncateSync(file, mebibytes * 2 ** 20);
  closeSync(file);
  const words = ['--find', '--show', '--sector-size', String(sectorBytes), disk];
  const device = execFileSync('losetup', words, { encoding: 'utf8' }).trim();
  cleanup.add(() => void execFileSync('losetup', ['--detach', device]));
  // It may still be read-only from its file before.
  execFileSync('blockdev', ['--setrw', device]);
  return device;
}

/** Copies the image on a device to an ordinary file, and returns that. */
export async function imageOn(device: string, cleanup: Cleanup): Promise<string> {
  const { imageBytes } = await succeed(['inspect', device]);
  const copy = join(diskDirectory(cleanup), 'copy');
  const [from, to] = [openSync(device, 'r'), openSync(copy, 'w')];
  const buffer = Buffer.alloc(1 << 20);
  for (let at = 0; at < Number(imageBytes); ) {
    const got = readSync(from, buffer, 0, Math.min(buffer.length, Number(imageBytes) - at), at);
    writeSync(to, buffer, 0, got, at);
    at += got;
  }
  closeSync(from);
  closeSync(to);
  return copy;
}
