import { closeSync, openSync, readdirSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { Cleanup } from './cleanup.ts';
import type { CliRun } from './cli.ts';
import { memoryDirectory } from './paths.ts';
import { Qemu, type QemuOptions } from './qemu.ts';
import { waitFor } from './wait.ts';

/** A cleanup that runs when the current test has ended. */
export function testCleanup(): Cleanup {
  const cleanup = new Cleanup();
  onTestFinished(() => cleanup.run());
  return cleanup;
}

/** The guest of tests that care for states and refusals, not for memory: it sits in its firmware. */
export const SMALL: QemuOptions = { machine: 'q35', mebibytes: 64 };

/** A small guest that was running and is paused. */
export async function pausedGuest(cleanup: Cleanup, options: Partial<QemuOptions> = {}): Promise<Qemu> {
  const qemu = await Qemu.start({ ...SMALL, ...options }, cleanup);
  await qemu.qmp.execute('stop');
  await qemu.qmp.waitForStatus('paused');
  return qemu;
}

/** A QEMU that waits for an image. */
export async function waitingQemu(cleanup: Cleanup, options: Partial<QemuOptions> = {}): Promise<Qemu> {
  const qemu = await Qemu.start({ ...SMALL, incoming: true, ...options }, cleanup);
  await qemu.qmp.waitForStatus('inmigrate');
  return qemu;
}

/** A running guest whose save takes long enough to be hit in the middle: its RAM is a tmpfs file full of data. */
export async function largeGuest(cleanup: Cleanup, mebibytes = 1024): Promise<Qemu> {
  const path = join(memoryDirectory(cleanup), 'memory');
  const file = openSync(path, 'w');
  const piece = Buffer.alloc(16 << 20, 0xa5);
  for (let at = 0; at < mebibytes; at += 16) writeSync(file, piece);
  closeSync(file);
  const memory = ['-object', `memory-backend-file,id=ram0,size=${mebibytes}M,mem-path=${path},share=on`];
  return Qemu.start({ machine: 'q35', mebibytes, memory }, cleanup);
}

/** Settings that make a save slow: one small request at a time. */
export const SLOWLY: string[] = ['--channels', '1', '--queue-depth', '1', '--engine', 'blocking'];

/** Waits until a running save has written some of its data. */
export async function midSave(save: CliRun, image: string): Promise<void> {
  let ended = false;
  void save.done.finally(() => (ended = true)).catch(() => {});
  await waitFor(
    'data in the partial image',
    120_000,
    () => {
      if (ended) throw new Error('the save ended before it could be hit in the middle');
      return allocated(`${image}.partial`) > 32 << 20 ? true : undefined;
    },
    2,
  );
}

/** Bytes that a file takes on its disk; 0 if there is none. */
export function allocated(path: string): number {
  return (statSync(path, { throwIfNoEntry: false })?.blocks ?? 0) * 512;
}

/** The names in a directory, sorted. */
export function names(directory: string): string[] {
  return readdirSync(directory).sort();
}
