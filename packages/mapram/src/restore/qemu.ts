import { MapramError } from '../errors.ts';
import {
  loadIncoming,
  type MigrationSettings,
  requireWaiting,
  type WaitingGuest,
  withSettings,
} from '../guest/incoming.ts';
import type { GuestLink } from '../guest/link.ts';
import { listProperties } from '../guest/queries.ts';
import { type Image, PAGE_BYTES } from '../image/index.ts';
import type { OpenImage } from '../image-file.ts';
import { clearMemory, closeFd, type GuestMemory, reopenForReading, requireRoom } from '../native.ts';
import type { Restoring } from './restoring.ts';
import type { RunStatePlan } from './run-state.ts';

/** Capabilities that mapped-ram excludes (QEMU 10.0.2, migrate_caps_check in migration/options.c). */
const EXCLUDED = ['xbzrle', 'compress', 'postcopy-ram'];

/**
 * Refuses what QEMU's own loader cannot do, before anything is changed.
 *
 * @param memory the guest's memory, or why it is out of our reach.
 * @throws {MapramError} E_GUEST_UNSUPPORTED, E_GUEST_MISMATCH, or why the memory is out of reach.
 */
export async function requireLoadable(
  { owner, waiting, opened, runState }: Restoring,
  resized: readonly string[],
  memory: GuestMemory | MapramError,
): Promise<void> {
  const obstacles = [...findObstacles(waiting), ...findUnloadable(opened.image, runState)];
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
  if (memory instanceof MapramError && (await hasFileMemory(owner.link))) throw memory;
}

/** Clears what must read zero, as far as it is in our reach, and has QEMU load the rest from descriptors of the checked file. */
export async function loadByQemu(restoring: Restoring, memory: GuestMemory | MapramError): Promise<void> {
  const { opened, how, job, owner, waiting } = restoring;
  const { commandOptions } = job;
  const { monitor, handover } = owner.link;
  const { image } = opened;
  const bitmaps = image.blocks.map(({ bitmap }) => bitmap);
  const dataPages = image.blocks.reduce((sum, block) => sum + block.setPages, 0);
  if (!(memory instanceof MapramError)) await job.run(requireRoom(memory, bitmaps));
  const load = (path: string): Promise<void> =>
    withSettings(monitor, waiting, loaderSettings(restoring), commandOptions, async () => {
      await requireWaiting(monitor, commandOptions);
      if (!(memory instanceof MapramError)) await job.run(clearMemory(memory, bitmaps, how.threads));
      job.enter('transfer', dataPages * PAGE_BYTES);
      owner.begin();
      await loadIncoming(monitor, `file:${path},offset=${image.base}`, commandOptions);
    });
  await withImageFds(opened, how.direct, (fds) => handover.lend(fds, load, commandOptions));
}

function loaderSettings({ how }: Restoring): MigrationSettings {
  return {
    capabilities: {
      'mapped-ram': true,
      multifd: true,
      'x-ignore-shared': false,
    },
    parameters: { 'multifd-channels': how.channels, 'direct-io': how.direct, 'max-bandwidth': 0 },
  };
}

/** QEMU reads headers through one descriptor and pages through another, which must have been opened apart. */
async function withImageFds<T>(
  { fd, path }: OpenImage,
  direct: boolean,
  use: (fds: number[]) => Promise<T>,
): Promise<T> {
  // Reopened by its descriptor, so that it is the file that was checked whatever stands under its name by now.
  const forHeaders = await reopenForReading(fd, path, false);
  try {
    const forPages = await reopenForReading(fd, path, direct);
    try {
      return await use([forHeaders, forPages]);
    } finally {
      closeFd(forPages);
    }
  } finally {
    closeFd(forHeaders);
  }
}

/** What in the image only method fill gets past. */
function findUnloadable({ capabilities }: Image, { unloadable }: RunStatePlan): string[] {
  const obstacles: string[] = [];
  // Whether QEMU reads the addresses in such an image cannot be asked, and one up to 10.2 takes them for headers.
  if (capabilities.includes('x-ignore-shared')) {
    obstacles.push('it was saved with x-ignore-shared; use method fill');
  }
  if (unloadable !== undefined) {
    obstacles.push(`it records the run state ${unloadable}, which QEMU does not take up; use method fill`);
  }
  return obstacles;
}

function findObstacles({ capabilities, parameters }: WaitingGuest): string[] {
  if (!capabilities.has('mapped-ram')) return ['it has no capability mapped-ram (it came with 9.0)'];
  const obstacles = EXCLUDED.filter((name) => capabilities.get(name) === true).map(
    (name) => `capability ${name} is on, which mapped-ram excludes`,
  );
  const compression = parameters['multifd-compression'];
  if (compression !== undefined && compression !== 'none') {
    obstacles.push(`multifd-compression is ${String(compression)}, which mapped-ram excludes`);
  }
  const credentials = parameters['tls-creds'];
  if (typeof credentials === 'string' && credentials !== '') {
    obstacles.push(`TLS is on (tls-creds ${credentials}), which mapped-ram excludes`);
  }
  return obstacles;
}

async function hasFileMemory({ monitor }: GuestLink): Promise<boolean> {
  const objects = await listProperties(monitor, '/objects');
  return objects.some(({ type }) => type === 'child<memory-backend-file>');
}
