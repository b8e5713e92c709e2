import { closeSync, ftruncateSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { freemem } from 'node:os';
import { join } from 'node:path';
import type { Cleanup } from '../test/support/cleanup.ts';
import { hugetlbfs, IS_ROOT, tmpfs } from '../test/support/filesystem.ts';
import { reserveHugePages } from '../test/support/hugepages.ts';
import { memoryDirectory } from '../test/support/paths.ts';
import type { Qemu } from '../test/support/qemu.ts';
import { type LiveBlock, liveBlocks } from '../test/support/ram.ts';
import { hasData, PIECE, type Workload } from './workload.ts';

/** What a guest's shared memory is made of: 4 KiB pages of a tmpfs, its transparent huge pages, or 2 MiB pages of a hugetlbfs. */
export const MEMORY_KINDS = ['small', 'huge', 'hugetlb'] as const;
export type MemoryKind = (typeof MEMORY_KINDS)[number];

/** Where memory files are made. */
export interface MemoryPlace {
  kind: MemoryKind;
  directory: string;
}

/**
 * Makes a place for a guest of `bytes`. The pages of a hugetlbfs are reserved once and stay so until `cleanup`, so that every run
 * meets pages that this machine has from its own host already.
 *
 * @throws {Error} if the host cannot give them.
 */
export function memoryPlace(kind: MemoryKind, bytes: number, cleanup: Cleanup): MemoryPlace {
  if (kind === 'small') return { kind, directory: memoryDirectory(cleanup) };
  if (!IS_ROOT) throw new Error('memory in huge pages takes root: it is mounted or reserved');
  const mebibytes = bytes / 2 ** 20;
  if (kind === 'huge') return { kind, directory: tmpfs(cleanup, mebibytes, 'always') };
  // Asked for more than there is, the kernel would give all that it has, and nothing would be left for others meanwhile.
  if (bytes > freemem())
    throw new Error(
      `the guest takes ${mebibytes} MiB in huge pages, and ${(freemem() / 2 ** 20).toFixed()} MiB are free`,
    );
  const refused = reserveHugePages(cleanup, mebibytes);
  if (refused !== undefined) throw new Error(refused);
  return { kind, directory: hugetlbfs(cleanup) };
}

let filesMade = 0;

/** A fresh memory file, as long as the guest's RAM and all hole. */
export function emptyFile({ bytes }: Workload, { directory }: MemoryPlace, cleanup: Cleanup): string {
  const path = join(directory, `memory-${filesMade++}`);
  const file = openSync(path, 'wx', 0o600);
  cleanup.add(() => rmSync(path));
  ftruncateSync(file, bytes);
  closeSync(file);
  return path;
}

/** Name of the RAM block that holds a workload. */
export const MAIN_BLOCK = 'ram0';

/** QEMU's words for RAM in `memoryFile`, or in private memory. */
export function memoryWords({ bytes }: Workload, memoryFile: string | undefined): string[] {
  // Without `align` QEMU 10 maps a file of tmpfs so that none of its huge pages fits, and a guest's touch gets it none.
  const place =
    memoryFile === undefined
      ? 'memory-backend-ram'
      : `memory-backend-file,mem-path=${memoryFile},share=on,align=2M`;
  return ['-object', `${place},id=${MAIN_BLOCK},size=${bytes}`];
}

/** Where a guest's RAM can be read and written: a memory file, or `/proc/PID/mem` from `start` on. */
export interface MemoryAt {
  path: string;
  start: number;
}

/** The RAM of a QEMU as its process has it: what is written there, the process has touched. */
export async function memoryOf(guest: Qemu): Promise<MemoryAt> {
  return { path: `/proc/${guest.pid}/mem`, start: (await mainBlock(guest)).address };
}

async function mainBlock(guest: Qemu): Promise<LiveBlock> {
  const block = (await liveBlocks(guest)).find(({ name }) => name === MAIN_BLOCK);
  if (block === undefined) throw new Error(`the guest has no RAM block ${MAIN_BLOCK}`);
  return block;
}

/** Fills RAM with what `make` makes of each piece. Zero pages are written too, for they were used, unless they never were. */
export function fillMemory(
  workload: Workload,
  { path, start }: MemoryAt,
  make: (workload: Workload, offset: number, into: Buffer) => Buffer,
): void {
  const file = openSync(path, 'r+');
  const piece = Buffer.alloc(PIECE);
  for (let offset = 0; offset < workload.bytes; offset += PIECE) {
    if (workload.isSparse && !hasData(workload, offset)) continue;
    const bytes = make(workload, offset, piece);
    for (let done = 0; done < bytes.length; )
      done += writeSync(file, bytes, done, bytes.length - done, start + offset + done);
  }
  closeSync(file);
}

/**
 * Makes sure that a filled guest's memory is transparent huge pages: the kernel takes small ones where it finds no others.
 *
 * @throws {Error} if a tenth of it or more is not.
 */
export async function expectHugePages({ dataBytes }: Workload, guest: Qemu): Promise<void> {
  const { address } = await mainBlock(guest);
  const huge = bytesMappedHuge(readFileSync(`/proc/${guest.pid}/smaps`, 'latin1'), address);
  if (huge < 0.9 * dataBytes)
    throw new Error(
      `the host gave transparent huge pages for only ${huge} of ${dataBytes} bytes of the guest's memory`,
    );
}

/** Bytes that huge pages map of the shared mapping that begins at `address`, as smaps tells. */
export function bytesMappedHuge(smaps: string, address: number): number {
  const from = smaps.search(new RegExp(`^${address.toString(16).padStart(8, '0')}-`, 'm'));
  const found = from < 0 ? null : /^ShmemPmdMapped: +(\d+) kB/m.exec(smaps.slice(from));
  return found === null ? 0 : Number(found[1]) * 1024;
}
