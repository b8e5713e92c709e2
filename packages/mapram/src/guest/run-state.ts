import { MapramError } from '../errors.ts';
import type { ExecuteOptions, Monitor, MonitorEvents } from './monitor.ts';
import { queryStatus } from './queries.ts';

/** Whether a guest in this state goes on by itself: a suspended one has its timers and devices running. */
export function isLive(state: string): boolean {
  return state === 'running' || state === 'suspended';
}

/**
 * States that a QEMU which loads them takes up. From the others there is no way out of `inmigrate`, so that it aborts, or waits
 * for ever (QEMU 10.0.2, runstate_transitions_def in system/runstate.c).
 */
export const LOADABLE_STATES: ReadonlySet<string> = new Set([
  'running',
  'suspended',
  'prelaunch',
  'postmigrate',
  'paused',
  'shutdown',
  'io-error',
  'watchdog',
  'guest-panicked',
  'internal-error',
]);

/** A guest that stands still for us. */
export interface StoppedGuest {
  /** The state that it was found in. */
  found: string;
  /** When it was stopped, or found standing, by `performance.now()`. */
  since: number;
  /** Tells whether it ran since. */
  watch: RunWatch;
}

/** Who puts the guest back. */
export interface Keeper {
  /** Called when the guest is found standing, or right before it is stopped. */
  take(isFoundLive: boolean): void;
}

/** Stops the guest if it runs. */
export async function stopGuest(
  monitor: Monitor,
  options: ExecuteOptions,
  keeper: Keeper,
): Promise<StoppedGuest> {
  const { status: found } = await queryStatus(monitor, options);
  const watch = new RunWatch(monitor.events, isLive(found));
  try {
    const since = performance.now();
    options.signal?.throwIfAborted();
    keeper.take(isLive(found));
    // `stop` flushes the guest's disks, which takes as long as the storage takes; the signal ends the wait.
    if (isLive(found)) await monitor.execute('stop', {}, { ...options, timeoutMs: 0 });
    await watch.requireStill(monitor, options);
    return { found, since, watch };
  } catch (error) {
    watch.release();
    throw error;
  }
}

/** Watches for signs that a stopped guest ran: another client may have resumed or reset it. */
export class RunWatch {
  readonly #events: MonitorEvents;
  #sign: string | undefined;
  #expectsStop: boolean;

  /** @param expectsStop whether we are about to stop the guest: what happened before that does not count. */
  constructor(events: MonitorEvents, expectsStop: boolean) {
    this.#events = events;
    this.#expectsStop = expectsStop;
    events.on('STOP', this.#onStop);
    events.on('RESUME', this.#onResume);
    events.on('RESET', this.#onReset);
  }

  /** @throws {MapramError} E_GUEST_RAN if it ran since it was stopped, or runs now. */
  async requireStill(monitor: Monitor, options: ExecuteOptions): Promise<void> {
    // Asked first: events that QEMU sent before its answer have arrived when that has.
    const { status } = await queryStatus(monitor, options);
    const sign = this.#sign ?? (isLive(status) ? `it is ${status}` : undefined);
    if (sign === undefined) return;
    throw new MapramError(
      'E_GUEST_RAN',
      `Someone else let the guest run while it was saved (${sign}), so its memory and its devices do not fit together`,
    );
  }

  /** Stops listening. */
  release(): void {
    this.#events.off('STOP', this.#onStop);
    this.#events.off('RESUME', this.#onResume);
    this.#events.off('RESET', this.#onReset);
  }

  readonly #onStop = (): void => {
    if (this.#expectsStop) this.#sign = undefined;
    this.#expectsStop = false;
  };

  readonly #onResume = (): void => {
    this.#sign = 'event RESUME';
  };

  readonly #onReset = (): void => {
    this.#sign = 'event RESET';
  };
}
