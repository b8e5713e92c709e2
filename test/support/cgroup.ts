import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from './cleanup.ts';
import { diskDirectory } from './paths.ts';
import { waitFor } from './wait.ts';

/** A memory cgroup of its own, of whichever version the host has. */
export interface MemoryCgroup {
  /** Words before a command that put it into the cgroup. */
  prefix: string[];
  /** Bytes that are charged to it. */
  usage: () => number;
  /** Allows no more than so many bytes. */
  limit: (bytes: number) => void;
}

/** Makes memory cgroups, which `cleanup` removes; or says why this host has none. */
export function memoryCgroups(cleanup: Cleanup): ((name: string) => MemoryCgroup) | { unavailable: string } {
  try {
    const { root, files } = memoryController(cleanup);
    const make = (name: string) =>
      memoryCgroup(join(root, `mapram-test-${process.pid}-${name}`), files, cleanup);
    // In a container the directory may be read-only, or without the controller.
    make('probe').usage();
    return make;
  } catch (error) {
    return { unavailable: `no memory cgroups can be made here: ${(error as Error).message}` };
  }
}

interface Files {
  usage: string;
  limit: string;
}

/** The root of version 1's memory controller if the host has that, else that of version 2, with memory switched on. */
function memoryController(cleanup: Cleanup): { root: string; files: Files } {
  const isVersion1 = /^memory\t[1-9]/m.test(readFileSync('/proc/cgroups', 'utf8'));
  const mounted = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '));
  if (isVersion1) {
    const found = mounted.find(
      ([, , type, options]) => type === 'cgroup' && options?.split(',').includes('memory'),
    );
    const root = found?.[1] ?? mount(cleanup, ['-t', 'cgroup', '-o', 'memory', 'cgroup']);
    return { root, files: { usage: 'memory.usage_in_bytes', limit: 'memory.limit_in_bytes' } };
  }
  const root =
    mounted.find(([, , type]) => type === 'cgroup2')?.[1] ?? mount(cleanup, ['-t', 'cgroup2', 'cgroup2']);
  writeFileSync(join(root, 'cgroup.subtree_control'), '+memory');
  return { root, files: { usage: 'memory.current', limit: 'memory.max' } };
}

/** Has the host swap to a file until `cleanup`; or says why it cannot. */
export function swapFile(cleanup: Cleanup, mebibytes: number): { unavailable?: string } {
  const path = join(diskDirectory(cleanup), 'swap');
  try {
    execFileSync('fallocate', ['--length', `${mebibytes}M`, path], { stdio: 'pipe' });
    chmodSync(path, 0o600);
    execFileSync('mkswap', [path], { stdio: 'pipe' });
    execFileSync('swapon', [path], { stdio: 'pipe' });
  } catch (error) {
    return { unavailable: `no swap file can be used here: ${(error as Error).message}` };
  }
  cleanup.add(() => void execFileSync('swapoff', [path]));
  return {};
}

function mount(cleanup: Cleanup, words: string[]): string {
  const directory = diskDirectory(cleanup);
  execFileSync('mount', [...words, directory], { stdio: 'pipe' });
  cleanup.add(() => void execFileSync('umount', ['--lazy', directory]));
  return directory;
}

function memoryCgroup(directory: string, files: Files, cleanup: Cleanup): MemoryCgroup {
  mkdirSync(directory);
  cleanup.add(async () => {
    await waitFor('an empty cgroup', 10_000, () => removed(directory));
  });
  return {
    prefix: ['sh', '-c', `echo $$ >${directory}/cgroup.procs && exec "$@"`, 'sh'],
    usage: () => Number(readFileSync(join(directory, files.usage), 'utf8')),
    limit: (bytes) => writeFileSync(join(directory, files.limit), String(bytes)),
  };
}

/** A process that has just ended may still be counted. */
function removed(directory: string): true | undefined {
  try {
    rmdirSync(directory);
    return true;
  } catch {
    return undefined;
  }
}
