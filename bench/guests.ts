import { closeSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from '../test/support/cleanup.ts';
import { memoryDirectory } from '../test/support/paths.ts';
import { Qemu } from '../test/support/qemu.ts';
import { type LiveBlock, liveBlocks } from '../test/support/ram.ts';
import { touchDisk } from './fast-standin.ts';
import { warmHostMemory } from './host-memory.ts';
import { withCleanup } from './with-cleanup.ts';
import { contents, hasData, PIECE, type Workload } from './workload.ts';

/** Whose turn it is: mapram's or QEMU's. Each has a QEMU of its own, so that neither meets what the other one left. */
export type Side = 'ours' | 'theirs';

/** A guest that never ran (-S) and holds a workload. */
export interface SourceGuest {
  qemu: Qemu;
  /** The file that is its RAM, where it has one. */
  memoryFile?: string;
}

/** Guests that are there to be saved. */
export interface SourceGuests {
  withGuest<T>(side: Side, use: (guest: SourceGuest) => Promise<T>): Promise<T>;
}

/** Name of the RAM block that holds a workload. */
export const MAIN_BLOCK = 'ram0';

/**
 * Starts what saves of `workload` need, with images in `directory`.
 *
 * Guests live as long as `cleanup`, except where a save changes them: QEMU's own fills a sparse memory file up while it reads it,
 * so there each save gets a fresh guest.
 */
export async function startSourceGuests(
  workload: Workload,
  directory: string,
  cleanup: Cleanup,
): Promise<SourceGuests> {
  if (workload.isSparse)
    return {
      withGuest: (side, use) =>
        withCleanup(async (own) => {
          const guest = await startSourceGuest(workload, own);
          // QEMU's fills the holes: what is measured shall not be how this machine gets memory from its own host.
          if (side === 'theirs') await warmHostMemory(workload.bytes);
          // On a virtual machine, using 12 GiB makes the next touch of all other memory slow, whoever touches it.
          touchContents(workload, guest);
          touchDisk(directory);
          return use(guest);
        }),
    };
  const ours = await startSourceGuest(workload, cleanup);
  const theirs = await startGuest(workload, ours.memoryFile, false, cleanup);
  const guests = { ours, theirs: { ...ours, qemu: theirs } };
  return { withGuest: (side, use) => use(guests[side]) };
}

/** Starts a guest that holds `workload`. */
export async function startSourceGuest(workload: Workload, cleanup: Cleanup): Promise<SourceGuest> {
  if (workload.isPrivate) return { qemu: await startGuest(workload, undefined, false, cleanup) };
  const memoryFile = prefilledFile(workload, cleanup);
  return { qemu: await startGuest(workload, memoryFile, false, cleanup), memoryFile };
}

/** The guest's main RAM block. */
export async function mainBlock(guest: Qemu): Promise<LiveBlock> {
  const block = (await liveBlocks(guest)).find(({ name }) => name === MAIN_BLOCK);
  if (block === undefined) throw new Error(`the guest has no RAM block ${MAIN_BLOCK}`);
  return block;
}

/** Starts a QEMU with RAM in `memoryFile`, or in private memory: that is filled here, unless the QEMU waits for an image. */
export async function startGuest(
  workload: Workload,
  memoryFile: string | undefined,
  incoming: boolean,
  cleanup: Cleanup,
): Promise<Qemu> {
  const place =
    memoryFile === undefined ? 'memory-backend-ram' : `memory-backend-file,mem-path=${memoryFile},share=on`;
  // QEMU's default CPU addresses 1 TiB, holes and devices included.
  const extra = workload.bytes >= 2 ** 39 ? ['-cpu', 'max,phys-bits=46'] : [];
  const memory = ['-object', `${place},id=${MAIN_BLOCK},size=${workload.bytes}`];
  const guest = await Qemu.start(
    { machine: 'q35', mebibytes: workload.bytes / 2 ** 20, memory, paused: true, incoming, extra },
    cleanup,
  );
  if (memoryFile === undefined && !incoming) {
    const { address } = await mainBlock(guest);
    writeContents(workload, `/proc/${guest.pid}/mem`, address);
  }
  return guest;
}

/** A fresh file on tmpfs that holds the workload. */
function prefilledFile(workload: Workload, cleanup: Cleanup): string {
  const path = emptyFile(workload, cleanup);
  writeContents(workload, path, 0);
  return path;
}

/** A fresh file on tmpfs, as long as the guest's RAM and all hole. */
export function emptyFile(workload: Workload, cleanup: Cleanup): string {
  const path = join(memoryDirectory(cleanup), 'memory');
  const file = openSync(path, 'wx', 0o600);
  ftruncateSync(file, workload.bytes);
  closeSync(file);
  return path;
}

/** Writes RAM's contents to `path` from `start` on. Zero pages are written too, for they were used, unless they never were. */
function writeContents(workload: Workload, path: string, start: number): void {
  const file = openSync(path, 'r+');
  const piece = Buffer.alloc(PIECE);
  for (let offset = 0; offset < workload.bytes; offset += PIECE) {
    if (workload.isSparse && !hasData(workload, offset)) continue;
    const bytes = contents(workload, offset, piece);
    for (let done = 0; done < bytes.length; )
      done += writeSync(file, bytes, done, bytes.length - done, start + offset + done);
  }
  closeSync(file);
}

/** Reads the pages that hold data. */
function touchContents(workload: Workload, { memoryFile }: SourceGuest): void {
  if (memoryFile === undefined) return;
  const file = openSync(memoryFile, 'r');
  const piece = Buffer.alloc(PIECE);
  for (let offset = 0; offset < workload.bytes; offset += PIECE)
    if (hasData(workload, offset)) readSync(file, piece, 0, PIECE, offset);
  closeSync(file);
}
