import { setTimeout as delay } from 'node:timers/promises';
import { type GuestState, MapramError } from '../errors.ts';
import { hasEnded } from '../guest/has-ended.ts';
import type { GuestLink } from '../guest/link.ts';
import { PUT_BACK_TIMEOUT_MS } from '../guest/monitor.ts';
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
  /** Whether the guest shall be left standing whatever comes: it was let run once, or could not be. */
  #isLeft = false;
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

  /** Lets the guest run. From then on it is no matter of the save's any more: another client may have paused it since. */
  async resume(): Promise<void> {
    await this.#link.monitor.execute('cont', {}, { timeoutMs: PUT_BACK_TIMEOUT_MS });
    this.resumedAt = performance.now();
    this.#isLeft = true;
  }

  /** After success. It is not cancelled any more: the image is there. Returns how the guest was left. */
  async settle(then: 'pause' | 'resume' | 'quit'): Promise<'running' | 'paused' | 'gone'> {
    if (then === 'pause') return 'paused';
    if (then === 'quit') {
      await this.#quit();
      return 'gone';
    }
    if (this.resumedAt === undefined) await this.resume().catch((error: unknown) => this.#giveUp(error));
    return 'running';
  }

  /** After a failure: lets the guest run if it did, and returns the error that says how the guest was left. */
  async putBack(error: unknown): Promise<unknown> {
    const { state, failure } = await this.#leave(error);
    if (!(error instanceof MapramError)) return error;
    const result = state === 'gone' ? asGone(error) : error;
    result.guestState = state;
    // The error itself is kept, for it may be the reason that the caller gave when he cancelled.
    if (failure !== undefined)
      result.message += `; and the guest, which ran before, could not be resumed: ${failure}`;
    return result;
  }

  /** Leaves the guest as it was, and says how that is; with a reason if it should run and does not. */
  async #leave(error: unknown): Promise<{ state: GuestState; failure?: string }> {
    if (await this.#isGone()) return { state: 'gone' };
    if (!this.#isStanding) return { state: isGone(error) ? 'gone' : 'untouched' };
    const mustRun = this.wasLive && !this.#isLeft;
    try {
      if (!mustRun)
        return { state: isLive((await queryStatus(this.#link.monitor)).status) ? 'running' : 'paused' };
      // Without asking first how it is: a QEMU that answers late must not leave the guest standing.
      await this.resume();
      return { state: 'running' };
    } catch (failure) {
      if (await this.#endsWithin(isGone(failure) ? DEATH_TIMEOUT_MS : 0)) return { state: 'gone' };
      return mustRun ? { state: 'paused', failure: messageOf(failure) } : { state: 'paused' };
    }
  }

  #giveUp(error: unknown): never {
    this.#isLeft = true;
    throw new MapramError(
      'E_QMP',
      `The image is whole and in its place, but the guest could not be resumed: ${messageOf(error)}`,
      { cause: error },
    );
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

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
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
