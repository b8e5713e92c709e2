import { captureDeviceState } from './guest/device-state.ts';
import { openGuestMemory } from './guest/guest-memory.ts';
import { GuestOwner } from './guest/owner.ts';
import { requireSavable } from './guest/preflight.ts';
import { queryMachine } from './guest/queries.ts';
import { queryRamBlocks, requireSameBlocks } from './guest/ram-blocks.ts';
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
import { requireBlankDevice } from './save/device.ts';
import { recordRunState } from './save/recorded-state.ts';
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
    const how = await chooseTransfer(settings);
    return 'guest' in settings ? saveGuest(settings, how, job) : saveMemory(settings, how, job);
  });
}

async function saveGuest(settings: GuestSave, how: Transfer, job: JobContext): Promise<SaveReport> {
  const owner = await GuestOwner.open(settings.guest, job);
  let file: ImageFile | undefined;
  try {
    await requireSavable(owner.link, job.commandOptions);
    const pid = await owner.find();
    await job.answer(requireTargetApartFromGuest(settings.image, pid, job.signal));
    // A target that cannot be written is refused before the guest is stopped.
    file = await createImage(settings, how, job);
    if (!settings.force) await job.answer(requireBlankDevice(settings.image, job.signal));
    return await saveTo(file, { settings, how, job, owner, pid });
  } catch (error) {
    throw await owner.explain(error);
  } finally {
    owner.release();
    if (file !== undefined) await job.tidyUp(file.discard());
  }
}

/** Everything that the steps of one save share. */
interface Saving {
  settings: GuestSave;
  how: Transfer;
  job: JobContext;
  owner: GuestOwner;
  pid: number;
}

async function saveTo(file: ImageFile, saving: Saving): Promise<SaveReport> {
  const { settings, how, job, owner, pid } = saving;
  const { commandOptions } = job;
  const { link } = owner;
  const machine = await queryMachine(link.monitor, commandOptions);
  const blocks = await queryRamBlocks(link.monitor, commandOptions);
  const memory = await openGuestMemory(link, pid, blocks, READ, job);
  const target = { image: settings.image, file, machine };
  const touched = await requireSpace(target, { blocks, memory }, how, job).finally(() => memory.close());
  await reserveLength(file, machine, blocks, job);
  await job.run(file.prepare(touched, how));
  const found = await owner.stop();
  job.holdsGuest = owner.wasLive;
  return saveStopped(file, machine, found, saving);
}

/** @param found the state that the guest was found in. */
async function saveStopped(
  file: ImageFile,
  machine: string,
  found: string,
  saving: Saving,
): Promise<SaveReport> {
  const { settings, how, job, owner } = saving;
  const { commandOptions } = job;
  const { link } = owner;
  // Only now do the blocks stand still: a running guest can resize some, and move them.
  const blocks = await queryRamBlocks(link.monitor, commandOptions);
  const devices = splitDevicesState(await captureDeviceState(link, commandOptions));
  const deviceState = recordRunState(devices, found);
  const memory = await openGuestMemory(link, saving.pid, blocks, READ, job);
  const pages = await writePages(file, machine, { blocks, memory }, how, job).finally(() => memory.close());
  await requireSameBlocks(link.monitor, blocks, commandOptions);
  const resumesEarly = settings.then === 'resume' && owner.wasLive;
  // What is left to do needs no guest. Should it not resume, it is told again, and that failure counts.
  if (resumesEarly) {
    await owner.requireStill();
    await owner.resumeEarly();
    job.holdsGuest = false;
  }
  await finishImage(file, pages, deviceState, job);
  if (!resumesEarly) await owner.requireStill();
  job.holdsGuest = false;
  await owner.publish(
    () => job.run(file.publish()),
    () => file.isPublished(),
  );
  const durationMs = owner.heldMs;
  const guestState = await owner.settle(settings.then);
  const { pauseMs } = owner;
  const { bitmaps } = pages;
  const facts = { ...how, image: settings.image, blocks, bitmaps, durationMs, pauseMs };
  return { ...transferReport(facts, job), guestState };
}

async function saveMemory(settings: MemorySave, how: Transfer, job: JobContext): Promise<SaveReport> {
  const { image, machine, deviceState } = settings;
  const blocks = settings.memory.map(({ name, length }) => ({ name, usedLength: length }));
  await job.answer(requireTargetApart(settings));
  const memory = await GuestMemory.ofNamed(settings.memory, false);
  let file: ImageFile | undefined;
  try {
    const since = performance.now();
    file = await createImage(settings, how, job);
    if (!settings.force) await job.answer(requireBlankDevice(image, job.signal));
    await requireSpace({ image, file, machine }, { blocks, memory }, how, job);
    const pages = await writePages(file, machine, { blocks, memory }, how, job);
    await finishImage(file, pages, deviceState, job);
    await job.run(file.publish());
    const durationMs = performance.now() - since;
    return transferReport({ ...how, image, blocks, bitmaps: pages.bitmaps, durationMs, pauseMs: 0 }, job);
  } finally {
    memory.close();
    if (file !== undefined) await job.tidyUp(file.discard());
  }
}

/** Creates the image; one that is created only after a cancel is discarded. */
function createImage(
  { image, force }: { image: string; force: boolean },
  { direct, engine }: Transfer,
  job: JobContext,
): Promise<ImageFile> {
  return job.answer(ImageFile.create(image, force, direct, engine), (file) => file.discard().run());
}

const READ = { writable: false };
