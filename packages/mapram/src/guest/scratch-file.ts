import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { open, readFile, readlink, rm, stat, truncate } from 'node:fs/promises';
import { basename } from 'node:path';
import { following, MapramError } from '../errors.ts';
import { type Handover, takeBack } from './handover.ts';
import type { Monitor } from './monitor.ts';
import { holdsFile } from './open-files.ts';
import { queryStatus } from './queries.ts';

/**
 * Passes bytes through a file that QEMU can open under the same name, for monitors that pass no descriptors. It is always QEMU that
 * makes the file, so that it is QEMU's own, whatever user that runs as.
 */
export class ScratchFileHandover implements Handover {
  readonly commands: readonly string[] = ['chardev-add', 'chardev-remove'];
  /** QEMU makes the file when it gets to it. */
  readonly canBeLeft = false;
  readonly #monitor: Monitor;
  readonly #path: string;
  readonly #signal: AbortSignal | undefined;

  constructor(monitor: Monitor, path: string, signal?: AbortSignal) {
    this.#monitor = monitor;
    this.#path = path;
    this.#signal = signal;
  }

  async reaches(pid: number): Promise<boolean> {
    const isOpen = async (): Promise<boolean> => {
      const file = await this.#ours(() => stat(this.#path, { bigint: true }));
      return holdsFile(pid, async (path) => {
        // The files of other names are not asked for: a disk of the guest's may hang.
        if (basename(await readlink(path)) !== basename(this.#path)) return false;
        const { dev, ino } = await stat(path, { bigint: true });
        return dev === file.dev && ino === file.ino;
      });
    };
    return this.#scratched(() => this.#whileOpen(isOpen));
  }

  async receive(write: (path: string) => Promise<void>): Promise<Uint8Array> {
    return this.#scratched(async () => {
      await write(this.#path);
      return Uint8Array.from(await this.#ours(() => readFile(this.#path)));
    });
  }

  async send(bytes: Uint8Array, use: (path: string) => Promise<void>): Promise<void> {
    return this.#scratched(async () => {
      await this.#whileOpen(() => this.#ours(() => this.#fill(bytes)));
      const reading = { in: this.#path, append: true };
      await this.#whileOpen(async () => {}, reading).catch(async (error: unknown) => {
        this.#signal?.throwIfAborted();
        throw await this.#whyUnreadable(error);
      });
      await use(this.#path);
    });
  }

  async lend(): Promise<void> {
    const message = 'Method qemu needs a monitor that passes descriptors';
    throw new MapramError('E_USAGE', message, { field: 'method' });
  }

  /** A refusal is QEMU's word on the file; that of a QEMU which answers nothing else either says nothing of it. */
  async #whyUnreadable(error: unknown): Promise<unknown> {
    if (!(error instanceof MapramError && error.code === 'E_QMP')) return error;
    if ((await queryStatus(this.#monitor).catch(() => undefined)) === undefined) return error;
    return following('E_PERMISSION', 'QEMU cannot read the scratch file:', error, { path: this.#path });
  }

  /** Gives the file, which QEMU has just made, its content; nobody but QEMU's user may read it. */
  async #fill(bytes: Uint8Array): Promise<void> {
    const file = await open(this.#path, constants.O_WRONLY | constants.O_NOFOLLOW);
    try {
      await file.chmod(0o600);
      await file.writeFile(bytes);
    } finally {
      await file.close().catch(() => {});
    }
  }

  /** Calls `use` while QEMU has the file open, as that of a character device that nothing uses. */
  async #whileOpen<T>(use: () => Promise<T>, more = {}): Promise<T> {
    const id = `mapram-${randomUUID()}`;
    const backend = { type: 'file', data: { out: this.#path, ...more } };
    this.#signal?.throwIfAborted();
    // Not cancelled once it is sent, so that it can be taken back.
    await this.#monitor.execute('chardev-add', { id, backend });
    try {
      return await use();
    } finally {
      await takeBack(this.#monitor, 'chardev-remove', { id }, this.#signal);
    }
  }

  /** Calls `use` where no file of the name is, and leaves none: it may hold a guest's secrets, so it goes whatever happens. */
  async #scratched<T>(use: () => Promise<T>): Promise<T> {
    // A file that stood there before could be anyone's, and open in any process.
    await this.#ours(() => rm(this.#path, { force: true }));
    try {
      return await use();
    } finally {
      await rm(this.#path, { force: true }).catch(() => truncate(this.#path).catch(() => {}));
    }
  }

  /** What we do with the file ourselves, with its name in whatever the system says against it. */
  async #ours<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw following(undefined, 'The scratch file cannot be used:', error, { path: this.#path });
    }
  }
}
