import { MapramError } from './errors.ts';
import { openGuestMemory } from './guest/guest-memory.ts';
import { inspectWaitingGuest, type WaitingGuest } from './guest/incoming.ts';
import type { GuestLink } from './guest/link.ts';
import { GuestOwner } from './guest/owner.ts';
import { queryUuid } from './guest/queries.ts';
import type { RamBlock } from './guest/ram-blocks.ts';
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
import { requireEqualReadOnlyMemory } from './restore/read-only.ts';
import type { Restoring } from './restore/restoring.ts';
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
    const how = await chooseTransfer(settings);
    const opened = await job.answer(openImage(settings.image, settings.offset), (late) => late.close());
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
  const owner = await GuestOwner.open(settings.guest, job);
  try {
    return await restoreInto(owner, opened, settings, how, job);
  } catch (error) {
    throw await owner.explain(error);
  } finally {
    owner.release();
  }
}

async function restoreInto(
  owner: GuestOwner,
  opened: OpenImage,
  settings: GuestRestore,
  how: Transfer,
  job: JobContext,
): Promise<RestoreReport> {
  const { image } = opened;
  const waiting = await inspectWaitingGuest(owner.link.monitor, job.commandOptions);
  const matched = matchGuest(image, waiting);
  await requireUuid(owner.link, waiting, image.uuid, job);
  const runState = planRunState(image.runState, settings.then);
  const restoring: Restoring = { opened, how, job, owner, waiting, runState };
  const reached = await reachMemory(owner, matched.blocks, settings.method, job);
  try {
    if (reached.memory instanceof GuestMemory)
      await requireEqualReadOnlyMemory(opened, reached.memory, reached.method, how, job);
    if (reached.method === 'qemu') {
      await requireLoadable(restoring, matched.resized, reached.memory);
      await loadByQemu(restoring, reached.memory);
    } else {
      await fillGuest(restoring, reached.memory);
    }
  } finally {
    if (reached.memory instanceof GuestMemory) reached.memory.close();
  }
  const guestState = await owner.finish(runState.shallRun);
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
  owner: GuestOwner,
  blocks: readonly RamBlock[],
  method: GuestRestore['method'],
  job: JobContext,
): Promise<Reached> {
  try {
    const pid = await owner.find();
    const memory = await openGuestMemory(owner.link, pid, blocks, { writable: true }, job);
    return { method: method === 'qemu' ? 'qemu' : 'fill', memory };
  } catch (error) {
    const isOutOfReach =
      error instanceof MapramError &&
      ['E_PERMISSION', 'E_GUEST_UNSUPPORTED', 'E_HOST_UNSUPPORTED'].includes(error.code);
    if (!isOutOfReach || method === 'fill') throw error;
    return { method: 'qemu', memory: error };
  }
}

function report({ opened, how, job, owner }: Restoring, method: 'fill' | 'qemu'): RestoreReport {
  const { blocks } = opened.image;
  const durationMs = owner.heldMs;
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
