import { closeSync, openSync, readSync } from 'node:fs';
import type { Cleanup } from '../test/support/cleanup.ts';
import { Qemu } from '../test/support/qemu.ts';
import { touchDisk } from './fast-standin.ts';
import {
  emptyFile,
  expectHugePages,
  fillMemory,
  type MemoryPlace,
  memoryOf,
  memoryWords,
} from './guest-memory.ts';
import { warmHostMemory } from './host-memory.ts';
import type { Stage } from './measurement.ts';
import { withCleanup } from './with-cleanup.ts';
import { contents, hasData, PIECE, type Workload } from './workload.ts';

/** Whose turn it is: mapram's or QEMU's. Each has a QEMU of its own, so that neither meets what the other one left. */
export type Side = 'ours' | 'theirs';

/** A guest that never ran (-S) and holds a workload. */
export interface SourceGuest {
  qemu: Qemu;
  /** The file that is its RAM, where it has one. */
  memoryFile?: string | undefined;
}

/** Guests that are there to be saved. */
export interface SourceGuests {
  withGuest<T>(side: Side, use: (guest: SourceGuest) => Promise<T>): Promise<T>;
}

/**
 * Starts what saves need.
 *
 * Guests live as long as `cleanup`, except where a save changes them: QEMU's own fills a sparse memory file up while it reads it,
 * so there each save gets a fresh guest.
 */
export async function startSourceGuests(
  { workload, place, directory }: Omit<Stage, 'start'>,
  cleanup: Cleanup,
): Promise<SourceGuests> {
  if (workload.isSparse)
    return {
      withGuest: (side, use) =>
        withCleanup(async (own) => {
          const guest = await startSourceGuest(workload, place, own);
          // QEMU's fills the holes: what is measured shall not be how this machine gets memory from its own host.
          if (side === 'theirs') await warmHostMemory(workload.bytes);
          // On a virtual machine, using 12 GiB makes the next touch of all other memory slow, whoever touches it.
          touchContents(workload, guest);
          touchDisk(directory);
          return use(guest);
        }),
    };
  const ours = await startSourceGuest(workload, place, cleanup);
  const theirs =
    ours.memoryFile === undefined
      ? await startSourceGuest(workload, place, cleanup)
      : { ...ours, qemu: await startGuest(workload, ours.memoryFile, false, cleanup) };
  const guests = { ours, theirs };
  return { withGuest: (side, use) => use(guests[side]) };
}

/** Starts a guest that holds `workload`, which is written through its own process, as a running guest does. */
export async function startSourceGuest(
  workload: Workload,
  place: MemoryPlace | undefined,
  cleanup: Cleanup,
): Promise<SourceGuest> {
  const memoryFile = place && emptyFile(workload, place, cleanup);
  const qemu = await startGuest(workload, memoryFile, false, cleanup);
  fillMemory(workload, await memoryOf(qemu), contents);
  if (place?.kind === 'huge') await expectHugePages(workload, qemu);
  return { qemu, memoryFile };
}

/** Starts a QEMU with RAM in `memoryFile`, or in private memory. */
export function startGuest(
  workload: Workload,
  memoryFile: string | undefined,
  incoming: boolean,
  cleanup: Cleanup,
): Promise<Qemu> {
  // QEMU's default CPU addresses 1 TiB, holes and devices included.
  const extra = workload.bytes >= 2 ** 39 ? ['-cpu', 'max,phys-bits=46'] : [];
  const memory = memoryWords(workload, memoryFile);
  const mebibytes = workload.bytes / 2 ** 20;
  return Qemu.start({ machine: 'q35', mebibytes, memory, paused: true, incoming, extra }, cleanup);
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
