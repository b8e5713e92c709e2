import { MapramError } from '../errors.ts';
import { loadIncoming, requireWaiting, withSettings } from '../guest/incoming.ts';
import { listProperties } from '../guest/queries.ts';
import { clearMemory, closeFd, type GuestMemory, reopenForReading, requireRoom } from '../native.ts';
import { countPages } from '../report.ts';
import type { Restoring } from './restoring.ts';

/** Capabilities that mapped-ram excludes (QEMU 10.0.2, migrate_caps_check in migration/options.c). */
const EXCLUDED = ['xbzrle', 'compress', 'postcopy-ram'];

/**
 * Refuses what QEMU's own loader cannot do, before anything is changed.
 *
 * @param memory the guest's memory, or why it is out of our reach.
 * @throws {MapramError} E_GUEST_UNSUPPORTED, E_GUEST_MISMATCH, or why the memory is out of reach.
 */
export async function requireLoadable(
  restoring: Restoring,
  resized: readonly string[],
  memory: GuestMemory | MapramError,
): Promise<void> {
  const obstacles = findObstacles(restoring);
  if (obstacles.length > 0) {
    const reason = `QEMU cannot load this image by itself: ${obstacles.join('; ')}`;
    throw new MapramError('E_GUEST_UNSUPPORTED', reason);
  }
  if (resized.length > 0) {
    throw new MapramError(
      'E_GUEST_MISMATCH',
      `RAM block ${resized.join(', ')} has another length in QEMU, whose loader does not resize it; method fill does`,
      { field: 'usedLength' },
    );
  }
  // QEMU leaves alone what the image does not hold. Fresh memory is zero, but a file may hold anything, and we cannot clear it.
  if (!(memory instanceof MapramError)) return;
  const objects = await listProperties(restoring.owner.link.monitor, '/objects');
  if (objects.some(({ type }) => type === 'child<memory-backend-file>')) throw memory;
}

/** Clears what must read zero, as far as it is in our reach, and has QEMU load the rest from descriptors of the checked file. */
export async function loadByQemu(restoring: Restoring, memory: GuestMemory | MapramError): Promise<void> {
  const { opened, how, job, owner, waiting } = restoring;
  const { commandOptions } = job;
  const { monitor, handover } = owner.link;
  const { base, blocks } = opened.image;
  const bitmaps = blocks.map(({ bitmap }) => bitmap);
  const settings = {
    capabilities: { 'mapped-ram': true, multifd: true, 'x-ignore-shared': false },
    parameters: { 'multifd-channels': how.channels, 'direct-io': how.direct, 'max-bandwidth': 0 },
  };
  if (!(memory instanceof MapramError)) await job.run(requireRoom(memory, bitmaps));
  const load = (path: string): Promise<void> =>
    withSettings(owner, waiting, settings, commandOptions, async () => {
      await requireWaiting(monitor, commandOptions);
      if (!(memory instanceof MapramError)) await job.run(clearMemory(memory, bitmaps, how.threads));
      job.enter('transfer', countPages(blocks).dataBytes);
      owner.begin();
      owner.loaded(await loadIncoming(monitor, `file:${path},offset=${base}`, commandOptions));
    });
  await withImageFds(restoring, (fds) => handover.lend(fds, load));
}

/** QEMU reads headers through one descriptor and pages through another, which must have been opened apart. */
async function withImageFds<T>(
  { opened: { fd, path }, how, job }: Restoring,
  use: (fds: number[]) => Promise<T>,
): Promise<T> {
  const fds: number[] = [];
  try {
    // Reopened by its descriptor, so that it is the file that was checked whatever stands under its name by now.
    for (const direct of [false, how.direct])
      fds.push(await job.answer(reopenForReading(fd, path, direct), closeFd));
    return await use(fds);
  } finally {
    for (const opened of fds) closeFd(opened);
  }
}

/** What in this QEMU, or in the image, only method fill gets past. */
function findObstacles({ waiting, opened, runState }: Restoring): string[] {
  const { capabilities, parameters } = waiting;
  const { 'multifd-compression': compression = 'none', 'tls-creds': credentials = '' } = parameters;
  const { unloadable } = runState;
  const isEncrypted = typeof credentials === 'string' && credentials !== '';
  const excluded = EXCLUDED.filter((name) => capabilities.get(name) === true);
  // Whether QEMU reads the addresses in such an image cannot be asked, and one up to 10.2 takes them for headers.
  const hasAddresses = opened.image.capabilities.includes('x-ignore-shared');
  const obstacles = [
    !capabilities.has('mapped-ram') && 'it has no capability mapped-ram (it came with 9.0)',
    ...excluded.map((name) => `capability ${name} is on, which mapped-ram excludes`),
    compression !== 'none' && `multifd-compression is ${compression}, which mapped-ram excludes`,
    isEncrypted && `TLS is on (tls-creds ${credentials}), which mapped-ram excludes`,
    hasAddresses && 'it was saved with x-ignore-shared; use method fill',
    unloadable && `it records the run state ${unloadable}, which QEMU does not take up; use method fill`,
  ];
  return obstacles.filter((obstacle) => typeof obstacle === 'string');
}
