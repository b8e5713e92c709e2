import { loadIncoming, requireWaiting, withSettings } from '../guest/incoming.ts';
import { dataExtents, encodeRamlessStream, patchRunState } from '../image/index.ts';
import { type GuestMemory, type ImageSource, requireRoom, restoreMemory } from '../native.ts';
import type { Transfer } from '../options.ts';
import { bytesIn, planTransfer } from '../plan/index.ts';
import type { Reading, Restoring } from './restoring.ts';

/** What would keep QEMU from loading a plain stream out of a file, or make it expect more in it. */
const PLAIN_STREAM = {
  capabilities: {
    'mapped-ram': false,
    'x-ignore-shared': false,
    multifd: false,
    'zero-copy-send': false,
    'postcopy-ram': false,
    'postcopy-preempt': false,
    'background-snapshot': false,
    'x-colo': false,
  },
  parameters: { 'tls-creds': '' },
};

/** Puts the pages in place from outside, and then has QEMU load a stream that has none and so overwrites none. */
export async function fillGuest(restoring: Restoring, memory: GuestMemory): Promise<void> {
  const { opened, job, owner, waiting, runState } = restoring;
  const { commandOptions } = job;
  const { monitor, handover } = owner.link;
  const { machine, blocks } = opened.image;
  const recorded = opened.image.deviceState;
  const deviceState = runState.recordsPaused ? patchRunState(recorded, 'paused') : recorded;
  const stream = encodeRamlessStream({ machine, blocks, deviceState });
  // QEMU has the stream in its hands before anything is written: whether it can read it shows by then.
  const fill = (path: string): Promise<void> =>
    withSettings(owner, waiting, PLAIN_STREAM, commandOptions, async () => {
      await requireWaiting(monitor, commandOptions);
      await fillMemory(restoring, memory);
      job.enter('finish');
      owner.begin();
      owner.loaded(await loadIncoming(monitor, `file:${path}`, commandOptions));
    });
  await handover.send(stream, fill);
}

/** Makes the memory what the image says: its pages in place, all others zero. */
export async function fillMemory(reading: Reading, memory: GuestMemory): Promise<void> {
  const { how, job } = reading;
  const { blocks } = reading.opened.image;
  const extents = blocks.map(({ bitmap, usedLength }) => dataExtents(bitmap, usedLength, how.chunkBytes));
  const plan = planTransfer({ ...how, blocks, extents });
  const threads = await job.answer(threadsToFill(memory, plan.dataBytes, how));
  const source = imageSource(reading);
  await job.run(requireRoom(memory, source.bitmaps));
  job.enter('transfer', plan.dataBytes);
  await job.transfer(restoreMemory(source, memory, plan, how.engine, { ...how, threads }));
}

/**
 * How many threads fill the memory with `dataBytes`. Where most of its pages are not there yet, finding them (and zeroing them, or
 * fetching them from a virtual machine's host) is most of the work, and all processors do it together.
 */
export async function threadsToFill(
  memory: GuestMemory,
  dataBytes: number,
  { threads, threadsForFreshMemory }: Transfer,
): Promise<number> {
  const present = bytesIn(await memory.scan());
  return present < dataBytes / 2 ? threadsForFreshMemory : threads;
}

/** The image as the engine reads it: where its pages are, and which pages it holds of each block. */
export function imageSource({ opened: { fd, path, image }, how }: Reading): ImageSource {
  return {
    fd,
    path,
    direct: how.direct,
    areas: image.blocks.map(({ pagesOffset, usedLength }) => ({ pagesOffset, length: usedLength })),
    bitmaps: image.blocks.map(({ bitmap }) => bitmap),
  };
}
