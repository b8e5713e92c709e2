import { requireApartFromGuest, requireApartFromMemory } from './apart.ts';
import { captureDeviceState } from './guest/device-state.ts';
import { openGuestMemory } from './guest/guest-memory.ts';
import { GuestOwner } from './guest/owner.ts';
import { requireSavable } from './guest/preflight.ts';
import { queryMachine, queryStatus } from './guest/queries.ts';
import { queryRamBlocks, requireSameBlocks } from './guest/ram-blocks.ts';
import { countSetPages, layoutImage, splitDevicesState } from './image/index.ts';
import { type JobContext, type JobPromise, startJob } from './job.ts';
import { GuestMemory, ImageFile } from './native.ts';
import {
  checkSaveOptions,
  chooseTransfer,
  type GuestSave,
  type MemorySave,
  type SaveOptions,
} from './options.ts';
import { type SaveReport, transferReport } from './report.ts';
import { requireBlankDevice } from './save/device.ts';
import { recordRunState } from './save/recorded-state.ts';
import { requireSpace } from './save/space.ts';
import { finishImage, type Target, type WrittenPages, writePages } from './save/write-image.ts';

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
    const created: ImageFile[] = [];
    const createTarget: CreateTarget = async (machine) => {
      const { image, force } = settings;
      // One that is created only after a cancel is discarded.
      const creating = ImageFile.create(image, force, how.direct, how.engine);
      const file = await job.answer(creating, (late) => late.discard().run());
      created.push(file);
      if (!force && file.deviceBytes !== undefined) await job.answer(requireBlankDevice(image, job.signal));
      return { image, file, machine, how, job };
    };
    try {
      return 'guest' in settings
        ? await saveGuest(settings, job, createTarget)
        : await saveMemory(settings, job, createTarget);
    } finally {
      for (const file of created) await job.tidyUp(file.discard());
    }
  });
}

/** Creates the file of an image that names `machine`. It is discarded at the end unless it was published. */
type CreateTarget = (machine: string) => Promise<Target>;

async function saveGuest(
  { guest, image, then }: GuestSave,
  job: JobContext,
  createTarget: CreateTarget,
): Promise<SaveReport> {
  const owner = await GuestOwner.open(guest, job);
  try {
    const { status } = await queryStatus(owner.link.monitor, job.commandOptions);
    await requireSavable(owner.link);
    const pid = await owner.find();
    const machine = await queryMachine(owner.link.monitor, job.commandOptions);
    await job.answer(requireApartFromGuest(image, pid, job.signal));
    // A target that cannot be written is refused before the guest is stopped.
    const saving: Saving = { ...(await createTarget(machine)), then, owner, pid };
    await prepareImage(saving);
    return await saveStopped(saving, await owner.stop(status));
  } catch (error) {
    throw await owner.explain(error);
  } finally {
    owner.release();
  }
}

/** Everything that the steps of one save of a guest share. */
interface Saving extends Target {
  then: GuestSave['then'];
  owner: GuestOwner;
  pid: number;
}

/** All that can be done, and refused, while the guest still runs. */
async function prepareImage(saving: Saving): Promise<void> {
  const { file, machine, how, job, owner, pid } = saving;
  const blocks = await queryRamBlocks(owner.link.monitor, job.commandOptions);
  const memory = await openGuestMemory(owner.link, pid, blocks, READ, job);
  const touched = await requireSpace(saving, { blocks, memory }).finally(() => memory.close());
  // The length up to the device state, which takes no space, so that a limit on the length of files shows now. On a device, what it
  // held is overwritten here.
  await job.run(file.finish([], layoutImage({ machine, blocks }).tailOffset));
  await job.run(file.prepare(touched, how));
}

/** @param found the state that the guest was found in. */
async function saveStopped(saving: Saving, found: string): Promise<SaveReport> {
  const { then, file, job, owner } = saving;
  const { commandOptions } = job;
  const { link } = owner;
  job.holdsGuest = owner.wasLive;
  // Only now do the blocks stand still: a running guest can resize some, and move them.
  const blocks = await queryRamBlocks(link.monitor, commandOptions);
  const devices = splitDevicesState(await captureDeviceState(link));
  const deviceState = recordRunState(devices, found);
  const memory = await openGuestMemory(link, saving.pid, blocks, READ, job);
  const pages = await writePages(saving, { blocks, memory }).finally(() => memory.close());
  await requireSameBlocks(link.monitor, blocks, commandOptions);
  const resumesEarly = then === 'resume' && owner.wasLive;
  // What is left to do needs no guest. Should it not resume, it is told again, and that failure counts.
  if (resumesEarly) {
    await owner.requireStill();
    await owner.resumeEarly();
    job.holdsGuest = false;
  }
  await finishImage(saving, pages, deviceState);
  if (!resumesEarly) await owner.requireStill();
  job.holdsGuest = false;
  await owner.publish(
    () => job.run(file.publish()),
    () => file.isPublished(),
  );
  const durationMs = owner.heldMs;
  const guestState = await owner.settle(then);
  return { ...reportOf(saving, pages, { durationMs, pauseMs: owner.pauseMs }), guestState };
}

async function saveMemory(
  { image, machine, deviceState, memory: named }: MemorySave,
  job: JobContext,
  createTarget: CreateTarget,
): Promise<SaveReport> {
  const blocks = named.map(({ name, length }) => ({ name, usedLength: length }));
  await job.answer(requireApartFromMemory(image, named, 'saved'));
  const memory = await job.answer(GuestMemory.ofNamed(named, false), (late) => late.close());
  try {
    const since = performance.now();
    const target = await createTarget(machine);
    await requireSpace(target, { blocks, memory });
    const pages = await writePages(target, { blocks, memory });
    await finishImage(target, pages, deviceState);
    await job.run(target.file.publish());
    return reportOf(target, pages, { durationMs: performance.now() - since, pauseMs: 0 });
  } finally {
    memory.close();
  }
}

function reportOf(
  { image, how, job }: Target,
  { layout, bitmaps }: WrittenPages,
  times: { durationMs: number; pauseMs: number },
): SaveReport {
  const blocks = layout.blocks.map((block, index) => {
    return { ...block, setPages: countSetPages(bitmaps[index] as Uint8Array) };
  });
  return transferReport({ ...how, ...times, image, blocks }, job);
}

const READ = { writable: false };
