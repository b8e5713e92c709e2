// Saves and restores the memory of an ordinary process, without QEMU:  node process-memory.js
//
// A worker process fills a buffer. Its memory is saved from outside to one image, the worker spoils the buffer, and the
// restore brings back every byte. Linux lets a process do this to its own children (or to any process, as root).

import { fork } from 'node:child_process';
import { createHash, randomBytes, randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { inspect, restore, save } from 'mapram';

const PAGE = 4096;
const BYTES = 64 << 20;

/** The worker: one large buffer, a quarter of it data, and answers about it. */
function work(marker) {
  const memory = Buffer.alloc(BYTES);
  for (let offset = 0; offset < BYTES; offset += 4 << 20) randomFillSync(memory, offset, 1 << 20);
  memory.write(marker);
  // Only whole pages can be saved, and the buffer's first and last are shared with the allocator.
  const inside = memory.subarray(PAGE, BYTES - PAGE);
  process.on('message', (request) => {
    if (request === 'spoil') inside.fill(0xff);
    process.send(createHash('sha256').update(inside).digest('hex'));
  });
  process.send('ready');
}

/** Finds the page-aligned inside of the worker's buffer by the marker that it begins with. */
function findMemory(pid, marker) {
  const file = openSync(`/proc/${pid}/mem`, 'r');
  const maps = readFileSync(`/proc/${pid}/maps`, 'utf8').matchAll(/^(\w+)-(\w+) rw-p \w+ 00:00 0 *$/gm);
  try {
    for (const [, from, to] of maps) {
      const start = Number.parseInt(from, 16);
      const bytes = Buffer.alloc(Number.parseInt(to, 16) - start);
      if (bytes.length < BYTES) continue;
      const at = bytes.subarray(0, readSync(file, bytes, 0, bytes.length, start)).indexOf(marker);
      if (at < 0) continue;
      const first = Math.ceil((start + at) / PAGE) * PAGE;
      const last = Math.floor((start + at + BYTES) / PAGE) * PAGE;
      return { pid, address: first, length: last - first };
    }
  } finally {
    closeSync(file);
  }
  throw new Error('the worker’s buffer was not found');
}

async function ask(worker, request) {
  worker.send(request);
  return (await once(worker, 'message'))[0];
}

/** Stops the worker while `action` runs, so that its memory stands still. */
async function stopped(worker, action) {
  worker.kill('SIGSTOP');
  try {
    return await action();
  } finally {
    worker.kill('SIGCONT');
  }
}

async function main() {
  const directory = mkdtempSync(join(tmpdir(), 'mapram-example-'));
  const image = join(directory, 'worker.mapram');
  const marker = randomBytes(16).toString('hex');
  const worker = fork(fileURLToPath(import.meta.url), [marker]);
  try {
    await once(worker, 'message');
    const memory = [{ name: 'worker', pageSize: PAGE, ...findMemory(worker.pid, marker) }];
    const before = await ask(worker, 'sum');
    console.log(
      `worker ${worker.pid}: ${BYTES >> 20} MiB at 0x${memory[0].address.toString(16)}, sha256 ${before.slice(0, 16)}`,
    );

    const saved = await stopped(worker, () => save({ image, memory, machine: 'example' }));
    console.log(`saved ${saved.dataBytes >> 20} MiB of data in ${saved.durationMs.toFixed(0)} ms`);
    const { fileBytes, allocatedBytes, blocks } = await inspect(image);
    console.log(`image: ${fileBytes >> 20} MiB logical, ${allocatedBytes >> 20} MiB on disk`);
    console.log(`blocks: ${blocks.map((block) => block.name).join(', ')}`);

    console.log(`spoiled: sha256 ${(await ask(worker, 'spoil')).slice(0, 16)}`);
    await stopped(worker, () => restore({ image, memory, machine: 'example' }));
    const after = await ask(worker, 'sum');
    console.log(`restored: sha256 ${after.slice(0, 16)}`);
    if (after !== before) throw new Error('the worker’s memory is not what it was');
  } finally {
    worker.kill('SIGKILL');
    rmSync(directory, { recursive: true });
  }
}

if (process.send !== undefined && process.argv[2] !== undefined) work(process.argv[2]);
else await main();
