import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { CACHE, ROOT } from './paths.ts';

/** What QEMU boots: a real Linux whose only program is support/guest/init.c. */
export interface GuestSystem {
  kernel: string;
  initramfs: string;
}

/** The guest's system; the initramfs is built at first use. Throws where .ci/setup did not run. */
export function guestSystem(): GuestSystem {
  const kernel = join(CACHE, 'vmlinuz');
  if (!existsSync(kernel)) throw new Error(`no guest kernel at ${kernel}; run npm run setup`);
  const initramfs = built('guest/init.c', (source) => newcArchive('init', compile(source, ['-static'])));
  return { kernel, initramfs };
}

/** What a guest runs in place of a BIOS where KVM is too slow for Linux; built at first use. */
export function guestFirmware(): string {
  const linked = '-Wl,-Ttext=0xffff0000,--oformat=binary,--build-id=none';
  return built('guest/counter.S', (source) => compile(source, ['-m32', '-nostdlib', '-static', linked]));
}

/** Compiles a C helper that runs on this machine, once a version of its source. */
export function hostProgram(name: string): string {
  return built(`host/${name}.c`, (source) => compile(source, []), 0o755);
}

/** The same for one that is preloaded into a program (LD_PRELOAD). */
export function hostLibrary(name: string): string {
  return built(`host/${name}.c`, (source) => compile(source, ['-shared', '-fPIC']), 0o755);
}

/** The file that `build` makes of a source under test/support, made once a version of the source. */
function built(name: string, build: (source: string) => Buffer, mode = 0o644): string {
  const source = join(ROOT, 'test/support', name);
  const digest = createHash('sha256').update(readFileSync(source)).digest('hex').slice(0, 12);
  const path = join(CACHE, `${basename(name)}-${digest}`);
  if (!existsSync(path)) publish(path, build(source), mode);
  return path;
}

function compile(source: string, options: string[]): Buffer {
  mkdirSync(CACHE, { recursive: true });
  const output = join(CACHE, `compiled.${process.pid}`);
  execFileSync('gcc', [...options, '-O2', '-Wall', '-Wextra', '-Werror', '-o', output, source], {
    stdio: 'inherit',
  });
  const program = readFileSync(output);
  rmSync(output);
  return program;
}

/** Two test workers may build the same file: each renames its own whole copy into place. */
function publish(path: string, content: Buffer, mode: number): void {
  const partial = `${path}.${process.pid}`;
  writeFileSync(partial, content, { mode });
  renameSync(partial, path);
}

/** A cpio archive in the kernel's "newc" form with one executable file (Documentation/driver-api/early-userspace/buffer-format.rst). */
function newcArchive(name: string, content: Buffer): Buffer {
  return Buffer.concat([newcEntry(name, 0o100755, content), newcEntry('TRAILER!!!', 0, Buffer.alloc(0))]);
}

function newcEntry(name: string, mode: number, content: Buffer): Buffer {
  const fields = [1, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length + 1, 0];
  const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}${name}\0`;
  return Buffer.concat([padded(Buffer.from(header, 'latin1')), padded(content)]);
}

function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
}
