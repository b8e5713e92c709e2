import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { QEMU, ROOT } from '../test/support/paths.ts';

/** What a figure cannot be judged without. */
export interface Host {
  cpu: string;
  cpus: number;
  memoryBytes: number;
  kernel: string;
  distribution: string;
  /** Mode of transparent huge pages, for private memory and for tmpfs. */
  hugePages: { private: string; shared: string };
  versions: Record<string, string>;
  /** Commit of the working tree; `-dirty` if files differ from it, reports aside. */
  commit: string;
}

/** The file system that images go to. */
export interface Disk {
  fileSystem: string;
  mountOptions: string;
  device: string;
  /** The device behind it, as sysfs tells: scheduler and request limits. */
  queue: Record<string, string>;
}

/** Collects the facts about this machine. */
export function describeHost(): Host {
  const huge = (name: string) => chosen(fileText(`/sys/kernel/mm/transparent_hugepage/${name}`));
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: cpus().length,
    memoryBytes: totalmem(),
    kernel: release(),
    distribution: /^PRETTY_NAME="(.*)"$/m.exec(fileText('/etc/os-release'))?.[1] ?? 'unknown',
    hugePages: { private: huge('enabled'), shared: huge('shmem_enabled') },
    versions: {
      mapram: firstMatch(/"version": "(.*)"/, fileText(join(ROOT, 'packages/mapram/package.json'))),
      node: process.versions.node,
      qemu: firstMatch(/version (\S+)/, output(QEMU, '--version')),
      fio: output('fio', '--version'),
      rust: firstMatch(/rustc (\S+)/, output('rustc', '--version')),
    },
    commit: describeCommit(),
  };
}

function describeCommit(): string {
  const commit = output('git', '-C', ROOT, 'describe', '--always', '--abbrev=12');
  const changed = output('git', '-C', ROOT, 'status', '--porcelain', '--', '.', ':!bench/results');
  return changed === '' ? commit : `${commit}-dirty`;
}

/** Collects the facts about the file system of `directory` and its device. */
export function describeDisk(directory: string): Disk {
  const column = (name: string) =>
    output('findmnt', '--noheadings', '--nofsroot', '--first-only', '--output', name, '--target', directory);
  const device = column('SOURCE');
  const queue = join('/sys/class/block', device.replace(/^.*\//, ''), 'queue');
  const names = ['scheduler', 'nr_requests', 'max_sectors_kb', 'max_segments', 'rotational', 'write_cache'];
  return {
    fileSystem: column('FSTYPE'),
    mountOptions: column('OPTIONS'),
    device,
    queue: Object.fromEntries(
      names.map((name) => [name, chosen(fileText(join(queue, name)))]).filter(([, text]) => text !== ''),
    ),
  };
}

/** The choice in brackets, as sysfs marks it; or all of the text. */
function chosen(text: string): string {
  return /\[(.*)\]/.exec(text)?.[1] ?? text.trim();
}

function firstMatch(pattern: RegExp, text: string): string {
  return pattern.exec(text)?.[1] ?? 'unknown';
}

/** A file's text; nothing where there is no such file. */
function fileText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** What a command prints; `unknown` where it is missing or fails. */
function output(command: string, ...words: string[]): string {
  try {
    return execFileSync(command, words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return 'unknown';
  }
}
