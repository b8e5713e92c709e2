import { closeSync, constants, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { readFile, rm, writeFile } from 'node:fs/promises';
import * as v from 'valibot';
import { createMemfd } from '../native.ts';
import type { GuestLink } from './link.ts';
import { type ExecuteOptions, type Monitor, PUT_BACK_TIMEOUT_MS } from './monitor.ts';
import { ask } from './queries.ts';

const AddFdSchema = v.object({ 'fdset-id': v.number() });

/**
 * Hands descriptors to QEMU and calls `use` with a name under which it can open them. QEMU picks the one whose access mode
 * and O_DIRECT flag are those that it opens with (QEMU 10.0.2, monitor_fdset_dup_fd_add in monitor/fds.c).
 */
export async function withFdSet<T>(
  monitor: Monitor,
  fds: readonly number[],
  use: (path: string) => Promise<T>,
  options: ExecuteOptions = {},
): Promise<T> {
  let id: number | undefined;
  try {
    for (const fd of fds) {
      const args = id === undefined ? {} : { 'fdset-id': id };
      options.signal?.throwIfAborted();
      // Not cancelled once it is sent: without the answer nobody knows which set to remove.
      const answer = await ask(monitor, AddFdSchema, 'add-fd', args, { fds: [fd] });
      id = answer['fdset-id'];
    }
    return await use(`/dev/fdset/${id}`);
  } finally {
    // A QEMU that is gone has no sets left, and no failure here may hide the reason for which we leave.
    if (id !== undefined) {
      const patient = { timeoutMs: PUT_BACK_TIMEOUT_MS };
      await monitor.execute('remove-fd', { 'fdset-id': id }, patient).catch(() => {});
    }
  }
}

/** Has QEMU write to a name, by `write`, and returns what it wrote. */
export async function readFromQemu(
  link: GuestLink,
  write: (path: string) => Promise<void>,
  options?: ExecuteOptions,
): Promise<Uint8Array> {
  const { monitor, scratchFile } = link;
  if (scratchFile !== undefined) {
    return withScratchFile(scratchFile, async () => {
      await write(scratchFile);
      return Uint8Array.from(await readFile(scratchFile));
    });
  }
  return withMemfd(async (memfd) => {
    const fd = openSync(`/proc/self/fd/${memfd}`, constants.O_WRONLY);
    try {
      await withFdSet(monitor, [fd], write, options);
    } finally {
      closeSync(fd);
    }
    return readWhole(memfd);
  });
}

/** Calls `read` with a name under which QEMU can read `bytes`. */
export async function writeToQemu(
  link: GuestLink,
  bytes: Uint8Array,
  read: (path: string) => Promise<void>,
  options?: ExecuteOptions,
): Promise<void> {
  const { monitor, scratchFile } = link;
  if (scratchFile !== undefined) {
    return withScratchFile(scratchFile, async () => {
      await writeFile(scratchFile, bytes, { mode: 0o600 });
      await read(scratchFile);
    });
  }
  return withMemfd(async (memfd) => {
    writeWhole(memfd, bytes);
    const fd = openSync(`/proc/self/fd/${memfd}`, constants.O_RDONLY);
    try {
      await withFdSet(monitor, [fd], read, options);
    } finally {
      closeSync(fd);
    }
  });
}

/** Calls `use` and removes the file at `path`: it may hold a guest's secrets, so it goes whatever happens. */
export async function withScratchFile<T>(path: string, use: () => Promise<T>): Promise<T> {
  try {
    return await use();
  } finally {
    await rm(path, { force: true });
  }
}

async function withMemfd<T>(use: (fd: number) => Promise<T>): Promise<T> {
  const fd = createMemfd('mapram-device-state');
  try {
    return await use(fd);
  } finally {
    closeSync(fd);
  }
}

function readWhole(fd: number): Uint8Array {
  const bytes = new Uint8Array(fstatSync(fd).size);
  for (let done = 0; done < bytes.length; ) {
    const got = readSync(fd, bytes, done, bytes.length - done, done);
    if (got === 0) return bytes.subarray(0, done);
    done += got;
  }
  return bytes;
}

function writeWhole(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(fd, bytes, done, bytes.length - done, done);
  }
}
