import { type GuestState, MapramError } from '../errors.ts';
import { hasEnded } from '../guest/has-ended.ts';
import type { WaitingGuest } from '../guest/incoming.ts';
import type { GuestLink } from '../guest/link.ts';
import type { Monitor } from '../guest/monitor.ts';
import { queryStatus } from '../guest/queries.ts';
import { isLive } from '../guest/run-state.ts';
import type { OpenImage } from '../image-file.ts';
import type { JobContext } from '../job.ts';
import type { Transfer } from '../options.ts';
import type { RunStatePlan } from './run-state.ts';

/** Everything that the steps of one restore into a guest share. */
export interface Restoring {
  /** The image, read and checked. */
  opened: OpenImage;
  /** How pages are moved. */
  how: Transfer;
  job: JobContext;
  /** The QEMU that is to hold the guest. */
  link: GuestLink;
  /** What it was when we came. */
  waiting: WaitingGuest;
  /** The state that the guest shall end in. */
  runState: RunStatePlan;
  /** How far the restore has come. */
  course: Course;
}

/** How far a restore into a guest has come, which decides what a failure leaves behind. */
export class Course {
  #begunAt: number | undefined;
  #isLoaded = false;
  #process: number | undefined;

  /** To be called when QEMU's process is known. */
  noteProcess(pid: number): void {
    this.#process = pid;
  }

  /** To be called right before the first write: from then on QEMU cannot be used for anything else. */
  begin(): void {
    this.#begunAt ??= performance.now();
  }

  /** To be called when QEMU holds the whole guest. */
  finishLoading(): void {
    this.#isLoaded = true;
  }

  /** Milliseconds since the first write. */
  elapsedMs(): number {
    return this.#begunAt === undefined ? 0 : performance.now() - this.#begunAt;
  }

  /**
   * The error to throw for a failure at this point. It says how the guest was left, except for a cancel: the signal's reason is passed
   * on as it is.
   */
  async explain(error: unknown, { monitor }: GuestLink, signal: AbortSignal): Promise<unknown> {
    const isCancel = signal.aborted && error === signal.reason;
    const isHalf = this.#begunAt !== undefined && !this.#isLoaded;
    const result = isHalf && !isCancel ? incomplete('guest', error) : error;
    if (!(result instanceof MapramError)) return result;
    if (this.#isLoaded) result.guestState = await stateOf(monitor);
    else if (await this.#isGone(error)) result.guestState = 'gone';
    else result.guestState = isHalf ? 'unusable' : 'untouched';
    return result;
  }

  async #isGone(error: unknown): Promise<boolean> {
    if (error instanceof MapramError && error.code === 'E_GUEST_GONE') return true;
    return this.#process !== undefined && (await hasEnded(this.#process));
  }
}

async function stateOf(monitor: Monitor): Promise<GuestState> {
  const found = await queryStatus(monitor).catch(() => undefined);
  if (found === undefined) return 'gone';
  return isLive(found.status) ? 'running' : 'paused';
}

/** The error for a restore that failed after its first write. */
export function incomplete(what: 'guest' | 'memory', cause: unknown): MapramError {
  const { path, offset, field } = cause instanceof MapramError ? cause : {};
  const reason = cause instanceof Error ? cause.message : String(cause);
  const message =
    what === 'guest'
      ? `The guest was restored in part only, so its QEMU must be started anew: ${reason}`
      : `The memory was restored in part only: ${reason}`;
  return new MapramError('E_RESTORE_INCOMPLETE', message, { path, offset, field, cause });
}
