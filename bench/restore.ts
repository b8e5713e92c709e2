import { execFileSync } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from '../test/support/cleanup.ts';
import { succeed } from '../test/support/cli.ts';
import { CLI } from '../test/support/paths.ts';
import type { Qemu } from '../test/support/qemu.ts';
import { checkImage } from './check-image.ts';
import { checkMemory } from './check-memory.ts';
import { runTimed } from './cpu.ts';
import { emptyFile, mainBlock, startGuest, startSourceGuest } from './guests.ts';
import { warmMemoryToFill } from './host-memory.ts';
import { type Contender, type Measurement, withKernelTime } from './measurement.ts';
import { mapramType, measureMapram, measureStock } from './save.ts';
import { median } from './statistics.ts';
import { configureStock, migrate, STOCK_METHODS, type StockMethod, stockSaveDurably } from './stock-save.ts';
import { withCleanup } from './with-cleanup.ts';
import { hasData, isData, PAGE, PIECE, type Workload } from './workload.ts';

/** Whether the shared memory of a waiting QEMU has its pages already, from an earlier use, or the host must find them first. */
export const MEMORY_STATES = ['warm', 'fresh'] as const;
export type MemoryState = (typeof MEMORY_STATES)[number];

/** What restores are measured with. */
export interface RestoreStage {
  workload: Workload;
  /** An image in the mapped-ram format, and one as QEMU's plain `file:` writes it, if anybody restores that. */
  images: { mappedRam: string; stream: string };
  /** Milliseconds that the command takes to start and end, whatever it does. */
  commandStart: number;
  /** The shared memory file of all waiting QEMUs where its pages shall be there. */
  warmFile?: string;
}

/** True if any of the methods restores a plain stream. */
export function needsStream(methods: StockMethod[]): boolean {
  return methods.some(({ mappedRam }) => !mappedRam);
}

/** Saves a guest with the workload, in each format that is needed, and gets ready the memory for restores. */
export async function prepareRestores(
  workload: Workload,
  memoryState: MemoryState | undefined,
  methods: StockMethod[],
  directory: string,
  cleanup: Cleanup,
): Promise<RestoreStage> {
  const images = { mappedRam: join(directory, 'mapped-ram.image'), stream: join(directory, 'stream.image') };
  await withCleanup(async (own) => {
    const { qemu } = await startSourceGuest(workload, own);
    await succeed(['save', '--qmp', qemu.socket, images.mappedRam], { timeoutMs: 600_000 });
    await checkImage(workload, qemu, images.mappedRam);
    if (!needsStream(methods)) return;
    await configureStock(qemu, STOCK_METHODS[0] as StockMethod, 1);
    await stockSaveDurably(qemu, images.stream);
  });
  const commandStart = await measureCommandStart();
  return {
    workload,
    images,
    commandStart,
    ...(memoryState === 'warm' ? { warmFile: emptyFile(workload, cleanup) } : {}),
  };
}

/** Median time of a command that does nothing. */
async function measureCommandStart(): Promise<number> {
  const times: number[] = [];
  for (let run = 0; run < 5; run++)
    times.push((await runTimed([process.execPath, CLI, '--version'])).milliseconds);
  return median(times);
}

/** `mapram restore`, the whole command, by `engine` over `channels`. */
export function mapramRestore(stage: RestoreStage, engine: string, channels: number): Contender {
  const words = ['restore', '--channels', String(channels), '--engine', engine, '--then', 'pause'];
  const image = stage.images.mappedRam;
  return {
    type: mapramType(engine),
    channels,
    run: () =>
      intoWaitingGuest(stage, image, async (guest) => {
        const measurement = await measureMapram(guest, stage.workload, [
          ...words,
          '--qmp',
          guest.socket,
          image,
        ]);
        // The report's own time leaves out what comes before the first write; QEMU's has it inside: image and bitmap are read.
        const milliseconds = Number(measurement.details['commandMilliseconds']) - stage.commandStart;
        return { ...measurement, milliseconds };
      }),
  };
}

/** QEMU's own ways of restoring: those with channels once for each count, the others once. */
export function stockRestores(stage: RestoreStage, methods: StockMethod[], channels: number[]): Contender[] {
  return methods.flatMap((method) =>
    method.multifd
      ? channels.map((count) => stockRestore(stage, method, count))
      : [stockRestore(stage, method, undefined)],
  );
}

function stockRestore(stage: RestoreStage, method: StockMethod, channels: number | undefined): Contender {
  const image = method.mappedRam ? stage.images.mappedRam : stage.images.stream;
  return {
    type: method.type,
    ...(channels === undefined ? {} : { channels }),
    run: () =>
      intoWaitingGuest(stage, image, async (guest) => {
        await configureStock(guest, method, channels ?? 1);
        return measureStock(guest, stage.workload, async () => {
          await migrate(guest, 'migrate-incoming', `file:${image}`);
          return 0;
        });
      }),
  };
}

/** Measures one restore into a QEMU that waits for it, with an image that is not in the page cache, and checks the guest's memory. */
function intoWaitingGuest(
  stage: RestoreStage,
  image: string,
  measure: (guest: Qemu) => Promise<Omit<Measurement, 'kernelCpuSeconds'>>,
): Promise<Measurement> {
  return withCleanup(async (cleanup) => {
    const { workload, warmFile } = stage;
    const memoryFile = workload.isPrivate ? undefined : (warmFile ?? emptyFile(workload, cleanup));
    if (warmFile !== undefined) writeStale(workload, warmFile);
    const guest = await startGuest(workload, memoryFile, true, cleanup);
    await guest.qmp.waitForStatus('inmigrate');
    // dd's way of saying posix_fadvise(POSIX_FADV_DONTNEED) for a whole file.
    execFileSync('dd', [`of=${image}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none']);
    if (warmFile === undefined) await warmMemoryToFill(workload);
    const measurement = await withKernelTime(() => measure(guest));
    checkMemory(
      workload,
      memoryFile ?? `/proc/${guest.pid}/mem`,
      memoryFile === undefined ? (await mainBlock(guest)).address : 0,
    );
    return measurement;
  });
}

/**
 * Gives a memory file all its pages. Those that the image has data for hold something else, so that a restore which does nothing
 * is found out; the others hold zeros, for QEMU's loader leaves alone what it has no data for.
 */
function writeStale(workload: Workload, path: string): void {
  const file = openSync(path, 'r+');
  const piece = Buffer.alloc(PIECE);
  for (let offset = 0; offset < workload.bytes; offset += PIECE) {
    if (workload.isSparse && !hasData(workload, offset)) continue;
    const bytes = piece.subarray(0, workload.bytes - offset);
    for (let at = 0; at < bytes.length; at += PAGE)
      bytes.fill(isData(workload, (offset + at) / PAGE) ? 0xa5 : 0, at, at + PAGE);
    writeSync(file, bytes, 0, bytes.length, offset);
  }
  closeSync(file);
}
