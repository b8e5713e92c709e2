import { randomUUID } from 'node:crypto';
import { closeSync } from 'node:fs';
import { readdir, readlink, rm, stat } from 'node:fs/promises';
import { MapramError } from '../errors.ts';
import { createMemfd } from '../native.ts';
import { withFdSet, withScratchFile } from './fdset.ts';
import { hasEnded } from './has-ended.ts';
import type { GuestLink } from './link.ts';
import type { ExecuteOptions } from './monitor.ts';

/** Whether a file that the guest's monitor hands to QEMU, or has it open, is then in the hands of process `pid`. */
export async function holdsWhatQemuGets(
  link: GuestLink,
  pid: number,
  options: ExecuteOptions = {},
): Promise<boolean> {
  return link.scratchFile === undefined
    ? holdsOurMemfd(link, pid, options)
    : opensScratchFile(link, link.scratchFile, pid, options);
}

/** Sends QEMU a memfd with a name that nothing else has, and looks whether the process has got it. */
async function holdsOurMemfd(link: GuestLink, pid: number, options: ExecuteOptions): Promise<boolean> {
  const name = `mapram-${randomUUID()}`;
  const memfd = createMemfd(name);
  const isHeld = (): Promise<boolean> =>
    someFile(pid, async (path) => (await readlink(path)).startsWith(`/memfd:${name}`));
  try {
    return await withFdSet(link.monitor, [memfd], isHeld, options);
  } finally {
    closeSync(memfd);
  }
}

/** Has QEMU open the scratch file, as the output of a character device that nothing uses, and looks whether the process did. */
async function opensScratchFile(
  { monitor }: GuestLink,
  scratchFile: string,
  pid: number,
  options: ExecuteOptions,
): Promise<boolean> {
  // A file that stood there before could be open in any process.
  await rm(scratchFile, { force: true });
  return withScratchFile(scratchFile, async () => {
    const id = `mapram-${randomUUID()}`;
    const backend = { type: 'file', data: { out: scratchFile } };
    options.signal?.throwIfAborted();
    // Not cancelled once it is sent, so that it can be taken back.
    await monitor.execute('chardev-add', { id, backend });
    try {
      const file = await stat(scratchFile, { bigint: true });
      return await someFile(pid, async (path) => {
        const { dev, ino } = await stat(path, { bigint: true });
        return dev === file.dev && ino === file.ino;
      });
    } finally {
      await monitor.execute('chardev-remove', { id }).catch(() => {});
    }
  });
}

/** Whether one of the files that the process has open is what `isWanted` looks for; it gets a path to look at each by. */
async function someFile(pid: number, isWanted: (path: string) => Promise<boolean>): Promise<boolean> {
  const directory = `/proc/${pid}/fd`;
  const fds = await readdir(directory).catch(async (cause: unknown) => {
    throw (await hasEnded(pid))
      ? new MapramError('E_GUEST_GONE', `QEMU's process ${pid} has ended`, { cause })
      : new MapramError(
          'E_PERMISSION',
          `The files of QEMU's process ${pid} may not be looked at by this user`,
          { path: directory, cause },
        );
  });
  const answers = await Promise.all(fds.map((fd) => isWanted(`${directory}/${fd}`).catch(() => false)));
  return answers.includes(true);
}
