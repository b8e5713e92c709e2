import { randomFillSync } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { Cleanup } from './support/cleanup.ts';
import { succeed } from './support/cli.ts';
import { allocated, testCleanup } from './support/fixtures.ts';
import { dataBytes } from './support/oracle.ts';
import { diskDirectory, memoryDirectory } from './support/paths.ts';
import { Qemu, type QemuOptions } from './support/qemu.ts';

const MEBIBYTES = 4096;
const TOUCHED = 256 << 20;

/** RAM in a tmpfs file of which one MiB in sixteen holds data. */
function idleMemory(cleanup: Cleanup): string {
  const path = emptyMemory(cleanup);
  const file = openSync(path, 'r+');
  const piece = randomFillSync(Buffer.alloc(1 << 20));
  for (let at = 0; at < MEBIBYTES; at += 16) writeSync(file, piece, 0, piece.length, at * 2 ** 20);
  closeSync(file);
  return path;
}

function emptyMemory(cleanup: Cleanup): string {
  const path = join(memoryDirectory(cleanup), 'memory');
  const file = openSync(path, 'w');
  ftruncateSync(file, MEBIBYTES * 2 ** 20);
  closeSync(file);
  return path;
}

function guest(path: string): QemuOptions {
  const memory = ['-object', `memory-backend-file,id=ram0,size=${MEBIBYTES}M,mem-path=${path},share=on`];
  return { machine: 'q35', mebibytes: MEBIBYTES, memory, paused: true };
}

test.for([
  { engine: 'io-uring', options: ['--copy', 'always'] },
  { engine: 'io-uring', options: ['--copy', 'never'] },
  { engine: 'tokio-uring', options: [] },
  { engine: 'blocking', options: ['--no-direct'] },
])(
  'an idle guest is saved and restored without touching a hole ($engine $options)',
  async ({ engine, options }) => {
    const cleanup = testCleanup();
    const memory = idleMemory(cleanup);
    const qemu = await Qemu.start(guest(memory), cleanup);
    const image = join(diskDirectory(cleanup), 'image');
    const before = allocated(memory);
    expect(before).toBeGreaterThanOrEqual(TOUCHED);

    const saved = await succeed(['save', '--qmp', qemu.socket, '--engine', engine, ...options, image]);
    expect(allocated(memory)).toBe(before);
    const data = dataBytes(image);
    expect(saved.dataBytes).toBe(data);
    expect(Math.abs(allocated(image) - data) / data).toBeLessThan(0.01);
    expect(statSync(image).size).toBeGreaterThan(MEBIBYTES * 2 ** 20);

    const target = emptyMemory(cleanup);
    const copy = await Qemu.start({ ...guest(target), incoming: true }, cleanup);
    await succeed([
      'restore',
      '--qmp',
      copy.socket,
      '--method',
      'fill',
      '--engine',
      engine,
      ...options,
      image,
    ]);
    expect(Math.abs(allocated(target) - before) / before).toBeLessThan(0.01);
  },
);
