import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import type { Cleanup } from '../test/support/cleanup.ts';
import { succeed } from '../test/support/cli.ts';
import type { Qemu } from '../test/support/qemu.ts';
import { checkImage } from './check-image.ts';
import { checkMemory } from './check-memory.ts';
import { emptyFile, fillMemory, memoryOf } from './guest-memory.ts';
import { startGuest, startSourceGuest } from './guests.ts';
import { warmMemoryToFill } from './host-memory.ts';
import { type MapramWay, mapramType, measureMapram } from './mapram.ts';
import { type Contender, type Measurement, type Stage, withKernelTime } from './measurement.ts';
import { measureStock } from './save.ts';
import {
  configureStock,
  migrate,
  STOCK_METHODS,
  type StockMethod,
  type StockWay,
  stockSaveDurably,
} from './stock-save.ts';
import { withCleanup } from './with-cleanup.ts';
import { isData, PAGE, PIECE, type Workload } from './workload.ts';

/** Whether the shared memory of a waiting QEMU has its pages already, from an earlier use, or the host must find them first. */
export const MEMORY_STATES = ['warm', 'fresh'] as const;
export type MemoryState = (typeof MEMORY_STATES)[number];

/** What restores are measured with. */
export interface RestoreStage extends Stage {
  /** An image in the mapped-ram format, and one as QEMU's plain `file:` writes it, if anybody restores that. */
  images: { mappedRam: string; stream: string };
  /** The shared memory file of all waiting QEMUs where its pages shall be there. */
  warmFile?: string;
}

/** True if any of the methods restores a plain stream. */
export function needsStream(methods: StockMethod[]): boolean {
  return methods.some(({ mappedRam }) => !mappedRam);
}

/** Saves a guest with the workload, in each format that is needed, and gets ready the memory for restores. */
export async function prepareRestores(
  stage: Stage,
  state: MemoryState | undefined,
  methods: StockMethod[],
  cleanup: Cleanup,
): Promise<RestoreStage> {
  const { workload, place, directory } = stage;
  const images = { mappedRam: join(directory, 'mapped-ram.image'), stream: join(directory, 'stream.image') };
  await withCleanup(async (own) => {
    const { qemu } = await startSourceGuest(workload, place, own);
    await succeed(['save', '--qmp', qemu.socket, images.mappedRam], { timeoutMs: 600_000 });
    await checkImage(workload, qemu, images.mappedRam);
    if (!needsStream(methods)) return;
    await configureStock(qemu, STOCK_METHODS[0] as StockMethod, 1);
    await stockSaveDurably(qemu, images.stream);
  });
  const warm = state === 'warm' && place ? { warmFile: emptyFile(workload, place, cleanup) } : {};
  return { ...stage, images, ...warm };
}

/** `mapram restore`, the whole command. */
export function mapramRestore(stage: RestoreStage, way: MapramWay): Contender {
  const image = stage.images.mappedRam;
  return {
    type: mapramType(way),
    channels: way.channels,
    run: () => intoWaitingGuest(stage, image, (guest) => measureMapram('restore', way, stage, guest, image)),
  };
}

/** QEMU's own restore. */
export function stockRestore(stage: RestoreStage, { method, ...channels }: StockWay): Contender {
  const image = method.mappedRam ? stage.images.mappedRam : stage.images.stream;
  return {
    type: method.type,
    ...channels,
    run: () =>
      intoWaitingGuest(stage, image, async (guest) => {
        await configureStock(guest, method, channels.channels ?? 1);
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
    const { workload, place, warmFile } = stage;
    const memoryFile = warmFile ?? (place && emptyFile(workload, place, cleanup));
    const guest = await startGuest(workload, memoryFile, true, cleanup);
    await guest.qmp.waitForStatus('inmigrate');
    const memory = memoryFile === undefined ? await memoryOf(guest) : { path: memoryFile, start: 0 };
    // A file of hugetlbfs cannot be written. Touched by QEMU, its pages are as QEMU's own `prealloc=on` leaves them.
    if (warmFile !== undefined)
      fillMemory(workload, place?.kind === 'hugetlb' ? await memoryOf(guest) : memory, stale);
    // dd's way of saying posix_fadvise(POSIX_FADV_DONTNEED) for a whole file.
    execFileSync('dd', [`of=${image}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none']);
    if (warmFile === undefined) await warmMemoryToFill(workload);
    const measurement = await withKernelTime(() => measure(guest));
    checkMemory(workload, memory);
    return measurement;
  });
}

/**
 * What warm memory holds before a restore. Pages that the image has data for hold something else, so that a restore which does
 * nothing is found out; the others hold zeros, for QEMU's loader leaves alone what it has no data for.
 */
function stale(workload: Workload, offset: number, into: Buffer): Buffer {
  const bytes = into.subarray(0, Math.min(PIECE, workload.bytes - offset));
  for (let at = 0; at < bytes.length; at += PAGE)
    bytes.fill(isData(workload, (offset + at) / PAGE) ? 0xa5 : 0, at, at + PAGE);
  return bytes;
}
