import { captureDeviceState } from './guest/device-state.ts';
import { openGuestMemory } from './guest/guest-memory.ts';
import { type GuestLink, openGuest } from './guest/link.ts';
import { requireSavable } from './guest/preflight.ts';
import { findGuestProcess } from './guest/process.ts';
import { queryMachine } from './guest/queries.ts';
import { queryRamBlocks } from './guest/ram-blocks.ts';
import { type StoppedGuest, stopGuest } from './guest/run-state.ts';
import { patchRunState, splitDevicesState } from './image/index.ts';
import { type JobContext, type JobPromise, startJob } from './job.ts';
import { GuestMemory, ImageFile } from './native.ts';
import {
  checkSaveOptions,
  chooseTransfer,
  type GuestSave,
  type MemorySave,
  type SaveOptions,
  type Transfer,
} from './options.ts';
import { SourceGuard } from './save/source-guard.ts';
import { type SaveReport, transferReport } from './report.ts';
import { requireSpace, writeImage } from './save/write-image.ts';

/**
 * Saves a guest, or memory that a program names, to one image. The image appears whole under its name or not at all; a
 * guest that was running runs again if the save fails.
 *
 * @throws {MapramError} by rejection, with `guestState`; or the signal's reason.
 */
export function save(options: SaveOptions): JobPromise<SaveReport> {
  return startJob(options.signal, async (job) => {
    const settings = checkSaveOptions(options);
    const how = chooseTransfer(settings);
    return 'guest' in settings ? saveGuest(settings, how, job) : saveMemory(settings, how, job);
  });
}

async function saveGuest(settings: GuestSave, how: Transfer, job: JobContext): Promise<SaveReport> {
  const link = await openGuest(settings.guest, job.signal);
  const guard = new SourceGuard(link);
  let file: ImageFile | undefined;
  try {
    await requireSavable(link, job);
    const pid = await findGuestProcess(link, job);
    guard.pid = pid;
    // A target that cannot be written is refused before the guest is stopped.
    file = createFile(settings, how);
    return await saveTo(file, { settings, how, job, link, guard, pid });
  } catch (error) {
    throw await guard.putBack(error);
  } finally {
    file?.discard();
    link.close();
  }
}

/** Everything that the steps of one save share. */
interface Saving {
  settings: GuestSave;
  how: Transfer;
  job: JobContext;
  link: GuestLink;
  guard: SourceGuard;
  pid: number;
}

async function saveTo(file: ImageFile, saving: Saving): Promise<SaveReport> {
  const { settings, job, link, guard, pid } = saving;
  const machine = await queryMachine(link.monitor, job);
  const running = await openGuestMemory(link, pid, await queryRamBlocks(link.monitor, job), READ, job);
  await requireSpace(settings.image, running);
  const guest = await stopGuest(link.monitor, job, guard);
  try {
    return await saveStopped(file, machine, guest, saving);
  } finally {
    guest.watch.release();
  }
}

async function saveStopped(
  file: ImageFile,
  machine: string,
  guest: StoppedGuest,
  saving: Saving,
): Promise<SaveReport> {
  const { settings, how, job, link, guard, pid } = saving;
  // Only now do the blocks stand still: a running guest can resize some, and move them.
  const blocks = await queryRamBlocks(link.monitor, job);
  const memory = await openGuestMemory(link, pid, blocks, READ, job);
  const devices = splitDevicesState(await captureDeviceState(link, job));
  const deviceState = patchRunState(devices, recordedState(guest.found));
  const bitmaps = await writeImage(file, { machine, blocks, memory, deviceState }, how, job);
  await guest.watch.requireStill(link.monitor, job);
  await job.run(file.publish());
  const savedAt = performance.now();
  await guard.settle(settings.then);
  return transferReport(
    {
      ...how,
      image: settings.image,
      blocks,
      bitmaps,
      durationMs: savedAt - guest.since,
      pauseMs: guard.wasLive ? performance.now() - guest.since : 0,
    },
    job,
  );
}

async function saveMemory(settings: MemorySave, how: Transfer, job: JobContext): Promise<SaveReport> {
  const { image, machine, deviceState } = settings;
  const blocks = settings.memory.map(({ name, length }) => ({ name, usedLength: length }));
  const file = createFile(settings, how);
  try {
    const since = performance.now();
    const memory = GuestMemory.ofNamed(settings.memory, false);
    await requireSpace(image, memory);
    const bitmaps = await writeImage(file, { machine, blocks, memory, deviceState }, how, job);
    await job.run(file.publish());
    const durationMs = performance.now() - since;
    return transferReport({ ...how, image, blocks, bitmaps, durationMs, pauseMs: 0 }, job);
  } finally {
    file.discard();
  }
}

function createFile({ image, force }: { image: string; force: boolean }, how: Transfer): ImageFile {
  return ImageFile.create(image, force, how.direct, how.engine);
}

const READ = { writable: false };

/** A guest that QEMU itself migrated away from here stands still like a paused one; its copy has not been migrated. */
function recordedState(found: string): string {
  return found === 'postmigrate' ? 'paused' : found;
}
