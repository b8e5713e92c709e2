import { requireApartFromMemory } from './apart.ts';
import { MapramError } from './errors.ts';
import { openGuestMemory } from './guest/guest-memory.ts';
import { inspectWaitingGuest } from './guest/incoming.ts';
import { GuestOwner } from './guest/owner.ts';
import { queryUuid } from './guest/queries.ts';
import type { RamBlock } from './guest/ram-blocks.ts';
import { openImage } from './image-file.ts';
import { type JobPromise, startJob } from './job.ts';
import { GuestMemory } from './native.ts';
import {
  checkRestoreOptions,
  chooseTransfer,
  type GuestRestore,
  type GuestRestoreOptions,
  type MemoryRestoreOptions,
  type RestoreOptions,
} from './options.ts';
import { type MemoryRestoreReport, type RestoreReport, transferReport } from './report.ts';
import { matchGuest } from './restore/compare.ts';
import { fillGuest } from './restore/fill.ts';
import { restoreIntoMemory } from './restore/memory.ts';
import { loadByQemu, requireLoadable } from './restore/qemu.ts';
import { requireEqualReadOnlyMemory } from './restore/read-only.ts';
import type { Reading, Restoring } from './restore/restoring.ts';
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
    const reading = { opened, how, job };
    try {
      return 'guest' in settings
        ? await restoreGuest(settings, reading)
        : await restoreIntoMemory(settings, reading);
    } finally {
      opened.close();
    }
  });
}

async function restoreGuest(settings: GuestRestore, reading: Reading): Promise<RestoreReport> {
  const owner = await GuestOwner.open(settings.guest, reading.job);
  try {
    return await restoreInto(owner, settings, reading);
  } catch (error) {
    throw await owner.explain(error);
  } finally {
    owner.release();
  }
}

async function restoreInto(
  owner: GuestOwner,
  { method: wanted, then }: GuestRestore,
  reading: Reading,
): Promise<RestoreReport> {
  const { opened, how, job } = reading;
  const { image, path } = opened;
  const waiting = await inspectWaitingGuest(owner.link.monitor, job.commandOptions);
  const { blocks, resized } = matchGuest(image, waiting);
  const restoring = { ...reading, owner, waiting, runState: planRunState(image.runState, then) };
  await requireUuid(restoring);
  const memory = await reachMemory(restoring, blocks, wanted);
  const isReached = memory instanceof GuestMemory;
  const method = isReached && wanted !== 'qemu' ? 'fill' : 'qemu';
  try {
    if (isReached) await requireEqualReadOnlyMemory(restoring, memory, method);
    if (isReached && method === 'fill') {
      await fillGuest(restoring, memory);
    } else {
      await requireLoadable(restoring, resized, memory);
      await loadByQemu(restoring, memory);
    }
  } finally {
    if (isReached) memory.close();
  }
  const guestState = await owner.finish(restoring.runState.shallRun);
  const durationMs = owner.heldMs;
  const engine = method === 'qemu' ? 'qemu' : how.engine;
  const facts = { ...how, engine, image: path, blocks: image.blocks, durationMs, pauseMs: durationMs };
  return { ...transferReport(facts, job), method, guestState };
}

/** An image records a UUID only if its guest was to be restored under no other; `fill` goes past QEMU's own look at it. */
async function requireUuid({ opened, owner, waiting, job }: Restoring): Promise<void> {
  const { uuid } = opened.image;
  if (uuid === undefined || waiting.capabilities.get('validate-uuid') !== true) return;
  const own = await queryUuid(owner.link.monitor, job.commandOptions);
  if (own.toLowerCase() === uuid) return;
  throw new MapramError('E_GUEST_MISMATCH', `The image is of guest ${uuid}, and QEMU's guest is ${own}`, {
    field: 'uuid',
  });
}

/** The guest's memory, opened for writing; or why it is out of our reach, where QEMU itself may load the image. */
async function reachMemory(
  { opened: { path }, owner, job }: Restoring,
  blocks: readonly RamBlock[],
  method: GuestRestore['method'],
): Promise<GuestMemory | MapramError> {
  try {
    const pid = await owner.find();
    const places = blocks.map(({ address, usedLength }) => ({ pid, address, length: usedLength }));
    await job.answer(requireApartFromMemory(path, places, 'restored'));
    return await openGuestMemory(owner.link, pid, blocks, { writable: true }, job);
  } catch (error) {
    const isOutOfReach =
      error instanceof MapramError &&
      ['E_PERMISSION', 'E_GUEST_UNSUPPORTED', 'E_HOST_UNSUPPORTED'].includes(error.code);
    if (!isOutOfReach || method === 'fill') throw error;
    return error;
  }
}
