import { MapramError } from './errors.ts';
import { openGuestMemory } from './guest/guest-memory.ts';
import { inspectWaitingGuest, type WaitingGuest } from './guest/incoming.ts';
import { type GuestLink, openGuest } from './guest/link.ts';
import { findGuestProcess } from './guest/process.ts';
import { queryStatus, queryUuid } from './guest/queries.ts';
import type { RamBlock } from './guest/ram-blocks.ts';
import { isLive } from './guest/run-state.ts';
import { type OpenImage, openImage } from './image-file.ts';
import { type JobContext, type JobPromise, startJob } from './job.ts';
import { GuestMemory } from './native.ts';
import {
  checkRestoreOptions,
  chooseTransfer,
  type GuestRestore,
  type GuestRestoreOptions,
  type MemoryRestoreOptions,
  type RestoreOptions,
  type Transfer,
} from './options.ts';
import { type MemoryRestoreReport, type RestoreReport, transferReport } from './report.ts';
import { matchGuest } from './restore/compare.ts';
import { fillGuest } from './restore/fill.ts';
import { restoreIntoMemory } from './restore/memory.ts';
import { loadByQemu, requireLoadable } from './restore/qemu.ts';
import { Course, type Restoring } from './restore/restoring.ts';
import { planRunState } from './restore/run-state.ts';

/**
 * Restores an image into a QEMU that waits for it, or into memory that a program names. The image is read and compared with the
 * guest first; a failure after the first write is E_RESTORE_INCOMPLETE.
 *
 * @throws {MapramError} by rejection, with `guestState`; or the signal's reason.
 */
export function restore(options: GuestRestoreOptions): JobPromise<RestoreReport>;
export function restore(options: MemoryRestoreOptions): JobPromise<MemoryRestoreReport>;
export function restore(options: RestoreOptions): JobPromise<RestoreReport | MemoryRestoreReport> {
  return startJob<RestoreReport | MemoryRestoreReport>(options?.signal, async (job) => {
    const settings = checkRestoreOptions(options);
    const how = chooseTransfer(settings);
    const opened = await openImage(settings.image, settings.offset);
    try {
      return 'guest' in settings
        ? await restoreGuest(opened, settings, how, job)
        : await restoreIntoMemory(opened, settings, how, job);
    } finally {
      opened.close();
    }
  });
}

async function restoreGuest(
  opened: OpenImage,
  settings: GuestRestore,
  how: Transfer,
  job: JobContext,
): Promise<RestoreReport> {
  const course = new Course();
  const link = await openGuest(settings.guest, job.signal);
  try {
    return await restoreThrough(link, opened, settings, how, job, course);
  } catch (error) {
    throw await course.explain(error, link, job.signal);
  } finally {
    link.close();
  }
}

async function restoreThrough(
  link: GuestLink,
  opened: OpenImage,
  settings: GuestRestore,
  how: Transfer,
  job: JobContext,
  course: Course,
): Promise<RestoreReport> {
  const { image } = opened;
  const waiting = await inspectWaitingGuest(link.monitor, job.commandOptions);
  const matched = matchGuest(image, waiting);
  await requireUuid(link, waiting, image.uuid, job);
  const reached = await reachMemory(link, matched.blocks, settings.method, job, course);
  const runState = planRunState(image.runState, settings.then);
  const restoring: Restoring = { opened, how, job, link, waiting, runState, course };
  try {
    if (reached.method === 'qemu') {
      await requireLoadable(restoring, matched.resized, reached.memory);
      await loadByQemu(restoring, reached.memory);
    } else {
      await fillGuest(restoring, reached.memory);
    }
  } finally {
    if (reached.memory instanceof GuestMemory) reached.memory.close();
  }
  course.finishLoading();
  const guestState = await settle(link, runState.shallRun);
  return { ...report(restoring, reached.method), guestState };
}

/** An image records a UUID only if its guest was to be restored under no other; `fill` goes past QEMU's own look at it. */
async function requireUuid(
  link: GuestLink,
  waiting: WaitingGuest,
  uuid: string | undefined,
  job: JobContext,
): Promise<void> {
  if (uuid === undefined || waiting.capabilities.get('validate-uuid') !== true) return;
  const own = await queryUuid(link.monitor, job.commandOptions);
  if (own.toLowerCase() === uuid) return;
  throw new MapramError('E_GUEST_MISMATCH', `The image is of guest ${uuid}, and QEMU's guest is ${own}`, {
    field: 'uuid',
  });
}

/** How the pages get into the guest, and its memory, opened for writing; or why it cannot be, where QEMU loads the image. */
type Reached =
  | { method: 'fill'; memory: GuestMemory }
  | { method: 'qemu'; memory: GuestMemory | MapramError };

/** Decides on the method: QEMU itself may load the image where its memory is out of our reach. */
async function reachMemory(
  link: GuestLink,
  blocks: readonly RamBlock[],
  method: GuestRestore['method'],
  job: JobContext,
  course: Course,
): Promise<Reached> {
  try {
    const pid = await findGuestProcess(link, job.commandOptions);
    course.noteProcess(pid);
    const memory = await openGuestMemory(link, pid, blocks, { writable: true }, job.commandOptions);
    return { method: method === 'qemu' ? 'qemu' : 'fill', memory };
  } catch (error) {
    const isOutOfReach =
      error instanceof MapramError &&
      ['E_PERMISSION', 'E_GUEST_UNSUPPORTED', 'E_HOST_UNSUPPORTED'].includes(error.code);
    if (!isOutOfReach || method === 'fill') throw error;
    return { method: 'qemu', memory: error };
  }
}

/** Lets the guest run if it shall, and says what it does; not cancelled any more, for the guest is whole. */
async function settle({ monitor }: GuestLink, shallRun: boolean): Promise<'running' | 'paused'> {
  const { status } = await queryStatus(monitor);
  if (!shallRun || isLive(status)) return isLive(status) ? 'running' : 'paused';
  await monitor.execute('cont');
  return 'running';
}

function report({ opened, how, job, course }: Restoring, method: 'fill' | 'qemu'): RestoreReport {
  const { blocks } = opened.image;
  const durationMs = course.elapsedMs();
  const facts = {
    ...how,
    image: opened.path,
    blocks,
    bitmaps: blocks.map(({ bitmap }) => bitmap),
    engine: method === 'qemu' ? 'qemu' : how.engine,
    durationMs,
    pauseMs: durationMs,
  };
  return { ...transferReport(facts, job), method };
}
