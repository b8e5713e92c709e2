import { setTimeout as delay } from 'node:timers/promises';
import { type GuestState, MapramError } from '../errors.ts';
import type { GuestLink } from '../guest/link.ts';
import { hasEnded } from '../guest/process.ts';
import { queryStatus } from '../guest/queries.ts';
import { isLive } from '../guest/run-state.ts';

/** QEMU closes its disks before it ends. */
const QUIT_TIMEOUT_MS = 30_000;
/** A process that was killed closes its connections first and then takes its time to give up its memory. */
const DEATH_TIMEOUT_MS = 5_000;

/** Remembers how a guest was found and leaves it as the save's end demands. */
export class SourceGuard {
  readonly #link: GuestLink;
  #isStanding = false;
  /** QEMU's process, once it is known. */
  pid: number | undefined;
  /** Whether the guest ran when the save came to it. */
  wasLive = false;
  /** When we let it run, by `performance.now()`. */
  resumedAt: number | undefined;

  constructor(link: GuestLink) {
    this.#link = link;
  }

  /** To be called when the guest is found standing, or right before it is stopped. */
  take(isFoundLive: boolean): void {
    this.#isStanding = true;
    this.wasLive = isFoundLive;
  }

  /** Lets the guest run. */
  async resume(): Promise<void> {
    await this.#link.monitor.execute('cont');
    this.resumedAt = performance.now();
  }

  /** After success. It is not cancelled any more: the image is there. */
  async settle(then: 'pause' | 'resume' | 'quit'): Promise<void> {
    if (then === 'resume' && this.resumedAt === undefined) await this.resume();
    if (then === 'quit') await this.#quit();
  }

  /** After a failure: lets the guest run if it did, and returns the error that says how the guest was left. */
  async putBack(error: unknown): Promise<unknown> {
    const state = await this.#leave(error);
    if (!(error instanceof MapramError)) return error;
    const result = state === 'gone' ? asGone(error) : error;
    result.guestState = state;
    return result;
  }

  async #leave(error: unknown): Promise<GuestState> {
    if (await this.#isGone()) return 'gone';
    if (!this.#isStanding) {
      return isGone(error) ? 'gone' : 'untouched';
    }
    const { monitor } = this.#link;
    try {
      const { status } = await queryStatus(monitor);
      if (isLive(status)) return 'running';
      if (!this.wasLive) return 'paused';
      await monitor.execute('cont');
      return 'running';
    } catch (failure) {
      return (await this.#endsWithin(isGone(failure) ? DEATH_TIMEOUT_MS : 0)) ? 'gone' : 'paused';
    }
  }

  async #isGone(): Promise<boolean> {
    return this.pid !== undefined && (await hasEnded(this.pid));
  }

  async #quit(): Promise<void> {
    await this.#link.monitor.execute('quit').catch((error: unknown) => {
      if (!isGone(error)) throw error;
    });
    // Whoever starts the next QEMU on the same disks finds them locked until this one has ended.
    await this.#endsWithin(QUIT_TIMEOUT_MS);
  }

  async #endsWithin(timeoutMs: number): Promise<boolean> {
    const deadline = performance.now() + timeoutMs;
    while (!(await this.#isGone())) {
      if (performance.now() >= deadline) return false;
      await delay(10);
    }
    return true;
  }
}

function isGone(error: unknown): boolean {
  return error instanceof MapramError && error.code === 'E_GUEST_GONE';
}

/** A QEMU that died shows in many ways: a read that fails, a connection that closes, an answer that does not come. */
function asGone(error: MapramError): MapramError {
  if (error.code !== 'E_IO' && error.code !== 'E_QMP') return error;
  const { path, offset } = error;
  return new MapramError('E_GUEST_GONE', `QEMU's process ended while its guest was saved: ${error.message}`, {
    path,
    offset,
    cause: error,
  });
}
