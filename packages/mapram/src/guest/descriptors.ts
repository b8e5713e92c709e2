import { randomUUID } from 'node:crypto';
import { constants, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { readlink } from 'node:fs/promises';
import * as v from 'valibot';
import { closeFd, createMemfd } from '../native.ts';
import type { Handover } from './handover.ts';
import { type ExecuteOptions, GIVE_BACK_TIMEOUT_MS, type Monitor, PUT_BACK_TIMEOUT_MS } from './monitor.ts';
import { holdsFile } from './open-files.ts';
import { ask } from './queries.ts';

const AddFdSchema = v.object({ 'fdset-id': v.number() });

/** Passes descriptors over the monitor's socket; QEMU opens them as `/dev/fdset/N`. */
export class DescriptorHandover implements Handover {
  readonly commands: readonly string[] = ['add-fd', 'remove-fd'];
  readonly #monitor: Monitor;

  constructor(monitor: Monitor) {
    this.#monitor = monitor;
  }

  /** Sends QEMU a memfd with a name that nothing else has, and looks whether the process has got it. */
  async reaches(pid: number, options: ExecuteOptions = {}): Promise<boolean> {
    const name = `mapram-${randomUUID()}`;
    const isHeld = (): Promise<boolean> =>
      holdsFile(pid, async (path) => (await readlink(path)).startsWith(`/memfd:${name}`));
    return withMemfd(name, (memfd) =>
      this.#withFdSet([memfd], isHeld, options, PUT_BACK_TIMEOUT_MS, options.signal),
    );
  }

  async receive(write: (path: string) => Promise<void>, options: ExecuteOptions = {}): Promise<Uint8Array> {
    return withMemfd('mapram-device-state', async (memfd) => {
      await reopened(memfd, constants.O_WRONLY, (fd) =>
        this.#withFdSet([fd], write, options, PUT_BACK_TIMEOUT_MS, options.signal),
      );
      return readWhole(memfd);
    });
  }

  async send(
    bytes: Uint8Array,
    use: (path: string) => Promise<void>,
    options: ExecuteOptions = {},
  ): Promise<void> {
    return withMemfd('mapram-device-state', async (memfd) => {
      writeWhole(memfd, bytes);
      await reopened(memfd, constants.O_RDONLY, (fd) => this.lend([fd], use, options));
    });
  }

  async lend(
    fds: readonly number[],
    use: (path: string) => Promise<void>,
    options: ExecuteOptions = {},
  ): Promise<void> {
    // What fails here is a restore: its QEMU may be busy with the load that failed, and is started anew in any case.
    return this.#withFdSet(fds, use, options, GIVE_BACK_TIMEOUT_MS);
  }

  /**
   * @param patienceMs how long QEMU is given to take the set away after a failure.
   * @param hurry once it is aborted, QEMU is given little time for that in any case.
   */
  async #withFdSet<T>(
    fds: readonly number[],
    use: (path: string) => Promise<T>,
    options: ExecuteOptions,
    patienceMs: number = PUT_BACK_TIMEOUT_MS,
    hurry?: AbortSignal,
  ): Promise<T> {
    let id: number | undefined;
    let timeoutMs = patienceMs;
    try {
      for (const fd of fds) {
        const args = id === undefined ? {} : { 'fdset-id': id };
        options.signal?.throwIfAborted();
        // Not cancelled once it is sent: without the answer nobody knows which set to remove.
        const answer = await ask(this.#monitor, AddFdSchema, 'add-fd', args, { fds: [fd] });
        id = answer['fdset-id'];
      }
      const result = await use(`/dev/fdset/${id}`);
      timeoutMs = PUT_BACK_TIMEOUT_MS;
      return result;
    } finally {
      if (id !== undefined) await this.#removeFdSet(id, timeoutMs, hurry);
    }
  }

  async #removeFdSet(id: number, timeoutMs: number, hurry?: AbortSignal): Promise<void> {
    const late = new AbortController();
    let timer: NodeJS.Timeout | undefined;
    const onHurry = (): void => {
      timer = setTimeout(() => late.abort(), GIVE_BACK_TIMEOUT_MS);
    };
    if (hurry?.aborted) onHurry();
    hurry?.addEventListener('abort', onHurry);
    const options = { timeoutMs, signal: late.signal };
    // A QEMU that is gone has no sets left, and no failure here may hide the reason for which we leave.
    await this.#monitor.execute('remove-fd', { 'fdset-id': id }, options).catch(() => {});
    hurry?.removeEventListener('abort', onHurry);
    clearTimeout(timer);
  }
}

async function withMemfd<T>(name: string, use: (fd: number) => Promise<T>): Promise<T> {
  const fd = createMemfd(name);
  try {
    return await use(fd);
  } finally {
    closeFd(fd);
  }
}

/** QEMU takes no descriptor that is open for reading and writing where it only reads or writes. */
async function reopened<T>(memfd: number, flags: number, use: (fd: number) => Promise<T>): Promise<T> {
  const fd = openSync(`/proc/self/fd/${memfd}`, flags);
  try {
    return await use(fd);
  } finally {
    closeFd(fd);
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
