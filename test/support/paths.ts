import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Cleanup } from './cleanup.ts';

/** The repository's root. */
export const ROOT: string = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '');

/** What .ci/setup fetches and the harness builds; not committed. */
export const CACHE: string = join(ROOT, 'test/.cache');

/** The built command line; that of an installed package can be named instead. */
export const CLI: string = process.env['MAPRAM_TEST_CLI'] ?? join(ROOT, 'packages/mapram/bin/mapram.js');
/** The built library. */
export const LIBRARY: string = join(ROOT, 'packages/mapram/dist/index.js');

/** The emulator under test; another one can be named. */
export const QEMU: string = process.env['MAPRAM_TEST_QEMU'] ?? 'qemu-system-x86_64';

/** Where images go: a directory on a disk, for tmpfs takes no O_DIRECT on many kernels. */
const DISK = process.env['MAPRAM_TEST_DIR'] ?? '/var/tmp';

/** A fresh directory on the disk, removed by `cleanup`. */
export function diskDirectory(cleanup: Cleanup): string {
  return freshDirectory(cleanup, DISK);
}

/** A fresh directory on tmpfs, removed by `cleanup`. */
export function memoryDirectory(cleanup: Cleanup): string {
  return freshDirectory(cleanup, '/dev/shm');
}

function freshDirectory(cleanup: Cleanup, parent: string): string {
  const path = mkdtempSync(join(parent, 'mapram-test-'));
  cleanup.add(() => rmSync(path, { recursive: true, force: true }));
  return path;
}
