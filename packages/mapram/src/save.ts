import { captureDeviceState } from './guest/device-state.ts';
import { openGuestMemory } from './guest/guest-memory.ts';
import { type GuestLink, openGuest } from './guest/link.ts';
import { requireSavable } from './guest/preflight.ts';
import { findGuestProcess } from './guest/process.ts';
import { queryMachine } from './guest/queries.ts';
import { queryRamBlocks } from './guest/ram-blocks.ts';
import { type StoppedGuest, stopGuest } from './guest/run-state.ts';
import { splitDevicesState } from './image/index.ts';
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
import { type SaveReport, transferReport } from './report.ts';
import { recordRunState } from './save/recorded-state.ts';
import { SourceGuard } from './save/source-guard.ts';
import { requireSpace } from './save/space.ts';
import { requireTargetApart, requireTargetApartFromGuest } from './save/target.ts';
import { finishImage, reserveLength, writePages } from './save/write-image.ts';

/**
 * Saves a guest, or memory that a program names, to one image. The image appears whole under its name or not at all; a
 * guest that was running runs again if the save fails.
 *
 * @throws {MapramError} by rejection, with `guestState`; or the signal's reason.
 */
export function save(options: SaveOptions): JobPromise<SaveReport> {
  // A program without types may give no options at all, which is for checkSaveOptions to say.
  return startJob(options?.signal, async (job) => {
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
    await requireSavable(link, job.commandOptions);
    const pid = await findGuestProcess(link, job.commandOptions);
    guard.pid = pid;
    // A target that cannot be written is refused before the guest is stopped.
    file = createFile(settings, how);
    return await saveTo(file, { settings, how, job, link, guard, pid });
  } catch (error) {
    throw await guard.putBack(error);
  } finally {
    link.close();
    await discard(file);
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
  const { settings, how, job, link, guard, pid } = saving;
  const { commandOptions } = job;
  const machine = await queryMachine(link.monitor, commandOptions);
  const blocks = await queryRamBlocks(link.monitor, commandOptions);
  await requireTargetApartFromGuest(settings, pid, blocks);
  const memory = await openGuestMemory(link, pid, blocks, READ, commandOptions);
  const touched = await requireSpace(settings.image, { blocks, memory }, how, job).finally(() =>
    memory.close(),
  );
  await reserveLength(file, machine, blocks, job);
  await job.run(file.prepare(touched, how));
  const guest = await stopGuest(link.monitor, commandOptions, guard);
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
  const { settings, how, job, link, guard } = saving;
  const { commandOptions } = job;
  // Only now do the blocks stand still: a running guest can resize some, and move them.
  const blocks = await queryRamBlocks(link.monitor, commandOptions);
  const devices = splitDevicesState(await captureDeviceState(link, commandOptions));
  const deviceState = recordRunState(devices, guest.found);
  const memory = await openGuestMemory(link, saving.pid, blocks, READ, commandOptions);
  const pages = await writePages(file, machine, { blocks, memory }, how, job).finally(() => memory.close());
  const resumesEarly = settings.then === 'resume' && guard.wasLive;
  // What is left to do needs no guest. Should it not resume, it is told again, and that failure counts.
  if (resumesEarly) {
    await guest.watch.requireStill(link.monitor, commandOptions);
    await guard.resume().catch(() => {});
  }
  await finishImage(file, pages, deviceState, job);
  if (!resumesEarly) await guest.watch.requireStill(link.monitor, commandOptions);
  await job.run(file.publish());
  const durationMs = performance.now() - guest.since;
  const guestState = await guard.settle(settings.then);
  const pauseMs = guard.wasLive ? (guard.resumedAt ?? performance.now()) - guest.since : 0;
  const { bitmaps } = pages;
  const facts = { ...how, image: settings.image, blocks, bitmaps, durationMs, pauseMs };
  return { ...transferReport(facts, job), guestState };
}

async function saveMemory(settings: MemorySave, how: Transfer, job: JobContext): Promise<SaveReport> {
  const { image, machine, deviceState } = settings;
  const blocks = settings.memory.map(({ name, length }) => ({ name, usedLength: length }));
  await requireTargetApart(settings);
  const memory = GuestMemory.ofNamed(settings.memory, false);
  let file: ImageFile | undefined;
  try {
    const since = performance.now();
    file = createFile(settings, how);
    await requireSpace(image, { blocks, memory }, how, job);
    const pages = await writePages(file, machine, { blocks, memory }, how, job);
    await finishImage(file, pages, deviceState, job);
    await job.run(file.publish());
    const durationMs = performance.now() - since;
    return transferReport({ ...how, image, blocks, bitmaps: pages.bitmaps, durationMs, pauseMs: 0 }, job);
  } finally {
    memory.close();
    await discard(file);
  }
}

function createFile({ image, force }: { image: string; force: boolean }, how: Transfer): ImageFile {
  return ImageFile.create(image, force, how.direct, how.engine);
}

const READ = { writable: false };

/** Removes what was not published. A failure to do so must not hide why the save failed; the next save replaces the rest. */
async function discard(file: ImageFile | undefined): Promise<void> {
  await file?.discard().catch(() => {});
}
