import { closeSync } from 'node:fs';
import { writeToQemu } from '../guest/fdset.ts';
import { loadIncoming, withSettings } from '../guest/incoming.ts';
import { dataExtents, encodeRamlessStream, type Image } from '../image/index.ts';
import type { OpenImage } from '../image-file.ts';
import type { JobContext } from '../job.ts';
import { type GuestMemory, openForReading, restoreMemory } from '../native.ts';
import type { Transfer } from '../options.ts';
import { planTransfer } from '../plan/index.ts';
import type { Restoring } from './restoring.ts';

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
  const { opened, how, job, link, waiting, course } = restoring;
  const { machine, blocks, deviceState } = opened.image;
  const stream = encodeRamlessStream({ machine, blocks, deviceState });
  await withSettings(link.monitor, waiting, PLAIN_STREAM, job, async () => {
    course.begin();
    await fillMemory(opened, memory, how, job);
    job.enter('finish');
    await writeToQemu(link, stream, (path) => loadIncoming(link.monitor, `file:${path}`, job), job);
  });
}

/** Makes the memory what the image says: its pages in place, all others zero. */
export async function fillMemory(
  { fd, image }: OpenImage,
  memory: GuestMemory,
  how: Transfer,
  job: JobContext,
): Promise<void> {
  const plan = planRestore(image, how);
  job.enter('transfer', plan.dataBytes);
  // Reopened by its descriptor, so that it is the file that was checked whatever stands under its name by now.
  const imageFd = openForReading(`/proc/self/fd/${fd}`, how.direct);
  try {
    const source = {
      imageFd,
      blocks: image.blocks.map(({ pagesOffset, usedLength }) => ({ pagesOffset, length: usedLength })),
      bitmaps: image.blocks.map(({ bitmap }) => bitmap),
      channels: plan.channels,
    };
    await job.transfer(restoreMemory(source, memory, how.engine, how));
  } finally {
    closeSync(imageFd);
  }
}

function planRestore({ blocks }: Image, { channels, chunkBytes }: Transfer): ReturnType<typeof planTransfer> {
  return planTransfer({
    blocks: blocks.map(({ usedLength }) => ({ length: usedLength })),
    extents: blocks.map(({ bitmap, usedLength }) => dataExtents(bitmap, usedLength, chunkBytes)),
    channels,
    chunkBytes,
  });
}
