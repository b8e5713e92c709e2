import { randomUUID } from 'node:crypto';
import { constants, openSync, readFileSync, writeFileSync } from 'node:fs';
import { readlink } from 'node:fs/promises';
import * as v from 'valibot';
import { closeFd, createMemfd } from '../native.ts';
import { type Handover, takeBack } from './handover.ts';
import type { Monitor } from './monitor.ts';
import { holdsFile } from './open-files.ts';
import { ask } from './queries.ts';

const AddFdSchema = v.object({ 'fdset-id': v.number() });

/** Passes descriptors over the monitor's socket; QEMU opens them as `/dev/fdset/N`. */
export class DescriptorHandover implements Handover {
  readonly commands: readonly string[] = ['add-fd', 'remove-fd'];
  readonly canBeLeft = true;
  readonly #monitor: Monitor;
  readonly #signal: AbortSignal | undefined;

  constructor(monitor: Monitor, signal?: AbortSignal) {
    this.#monitor = monitor;
    this.#signal = signal;
  }

  /** Sends QEMU a memfd with a name that nothing else has, and looks whether the process has got it. */
  async reaches(pid: number): Promise<boolean> {
    const name = `mapram-${randomUUID()}`;
    const isHeld = (): Promise<boolean> =>
      holdsFile(pid, async (path) => (await readlink(path)).startsWith(`/memfd:${name}`));
    return whileOpen(createMemfd(name), (memfd) => this.#withFdSet([memfd], isHeld));
  }

  async receive(write: (path: string) => Promise<void>): Promise<Uint8Array> {
    return whileOpen(createMemfd('mapram-device-state'), async (memfd) => {
      await whileOpen(reopen(memfd, constants.O_WRONLY), (fd) => this.#withFdSet([fd], write));
      const { buffer, byteOffset, length } = readFileSync(memfd);
      return new Uint8Array(buffer, byteOffset, length);
    });
  }

  async send(bytes: Uint8Array, use: (path: string) => Promise<void>): Promise<void> {
    return whileOpen(createMemfd('mapram-device-state'), async (memfd) => {
      writeFileSync(memfd, bytes);
      await whileOpen(reopen(memfd, constants.O_RDONLY), (fd) => this.lend([fd], use));
    });
  }

  async lend(fds: readonly number[], use: (path: string) => Promise<void>): Promise<void> {
    // What fails here is a restore: its QEMU may be busy with the load that failed, and is started anew in any case.
    return this.#withFdSet(fds, use, AbortSignal.abort());
  }

  /** @param hurryIfFailed once it is aborted, QEMU is given little time to take the set away after a failure. */
  async #withFdSet<T>(
    fds: readonly number[],
    use: (path: string) => Promise<T>,
    hurryIfFailed: AbortSignal | undefined = this.#signal,
  ): Promise<T> {
    let id: number | undefined;
    let hurry = hurryIfFailed;
    try {
      for (const fd of fds) {
        const args = id === undefined ? {} : { 'fdset-id': id };
        this.#signal?.throwIfAborted();
        // Not cancelled once it is sent: without the answer nobody knows which set to remove.
        const answer = await ask(this.#monitor, AddFdSchema, 'add-fd', args, { fds: [fd] });
        id = answer['fdset-id'];
      }
      const result = await use(`/dev/fdset/${id}`);
      hurry = this.#signal;
      return result;
    } finally {
      if (id !== undefined) await takeBack(this.#monitor, 'remove-fd', { 'fdset-id': id }, hurry);
    }
  }
}

/** Calls `use` with a descriptor, and closes it. */
async function whileOpen<T>(fd: number, use: (fd: number) => Promise<T>): Promise<T> {
  try {
    return await use(fd);
  } finally {
    closeFd(fd);
  }
}

/** QEMU takes no descriptor that is open for reading and writing where it only reads or writes. */
function reopen(memfd: number, flags: number): number {
  return openSync(`/proc/self/fd/${memfd}`, flags);
}
