import { MapramError } from '../errors.ts';
import type { ExecuteOptions, Monitor, MonitorEvent } from './monitor.ts';
import { isMigrating } from './preflight.ts';
import { queryJobs, queryMigration, queryStatus } from './queries.ts';

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

/** States of a guest that runs, or is about to, where it was migrated to; and of one that QEMU itself has saved. */
const MIGRATED: ReadonlySet<string> = new Set(['finish-migrate', 'postmigrate']);

/** @throws {MapramError} E_GUEST_RAN if a guest that was `before` has come into the state `now` by a migration. */
export function requireNotMigratedSince(before: string, now: string): void {
  if (now === before || !MIGRATED.has(now)) return;
  throw new MapramError(
    'E_GUEST_RAN',
    `Someone else has migrated the guest since the save began (it is ${now})`,
  );
}

/** Stops a guest, and watches for signs that it did not stand still: another client may have resumed, reset, loaded or migrated it. */
export class RunWatch {
  readonly #monitor: Monitor;
  readonly #listeners: Readonly<Record<string, (event: MonitorEvent) => void>> = {
    RESUME: () => this.#see('event RESUME'),
    RESET: () => this.#see('event RESET'),
    JOB_STATUS_CHANGE: (event) => {
      const { id, status } = event?.data ?? {};
      // Jobs of long ago stay there, concluded, until someone dismisses them.
      if (status === 'concluded' || status === 'null') return;
      this.#looks = Promise.all([this.#looks, this.#lookAtJob(id)]);
    },
  };
  #sign: string | undefined;
  /** Looks at jobs that have changed. */
  #looks: Promise<unknown> | undefined;
  /** The types of the jobs that were there when the guest was stopped, by their ids. */
  #jobs: ReadonlyMap<unknown, string> = new Map();
  #state = '';
  /** The state that QEMU last told. */
  lastStatus: string | undefined;

  constructor(monitor: Monitor) {
    this.#monitor = monitor;
    for (const [name, listener] of Object.entries(this.#listeners)) monitor.events.on(name, listener);
  }

  /**
   * Stops the guest if it runs, and returns the state that it was found in.
   *
   * @param before the state that it was in when the job began.
   * @param take called with it when the guest is found standing, or right before it is stopped.
   * @throws {MapramError} E_GUEST_RAN
   */
  async stop(before: string, options: ExecuteOptions, take: (found: string) => void): Promise<string> {
    const { status: found } = await queryStatus(this.#monitor, options);
    options.signal?.throwIfAborted();
    requireNotMigratedSince(before, found);
    take(found);
    // `stop` flushes the guest's disks, which takes as long as the storage takes; the signal ends the wait.
    if (isLive(found)) await this.#monitor.execute('stop', {}, { ...options, timeoutMs: 0 });
    // What came before the answer to `stop` was before the guest stood.
    await this.#looks;
    this.#sign = undefined;
    this.#jobs = await this.#typesOfJobs();
    this.#state = (await queryStatus(this.#monitor, options)).status;
    requireNotMigratedSince(found, this.#state);
    await this.requireStill(this.#monitor, options);
    if (!isLive(found) || this.#state === 'paused') return found;
    // It came to a standstill by itself right before: shut down, say.
    take(this.#state);
    return this.#state;
  }

  /** @throws {MapramError} E_GUEST_RAN if it did not stand still since it was stopped. */
  async requireStill(monitor: Monitor, options: ExecuteOptions): Promise<void> {
    const sign = await this.findSign(monitor, options);
    if (sign === undefined) return;
    throw new MapramError(
      'E_GUEST_RAN',
      `Someone else used the guest while it was saved (${sign}), so its memory and its devices do not fit together`,
    );
  }

  /** A sign that it did not stand still, if there is one. */
  async findSign(monitor: Monitor, options: ExecuteOptions): Promise<string | undefined> {
    // Asked first: events that QEMU sent before its answer have arrived when that has.
    const { status } = await queryStatus(monitor, options);
    this.lastStatus = status;
    const migration = await queryMigration(monitor, options);
    await this.#looks;
    if (this.#sign !== undefined) return this.#sign;
    if (isLive(status) || status !== this.#state) return `it is ${status}`;
    return isMigrating(migration.status) ? 'it is being migrated' : undefined;
  }

  /** Stops listening. */
  release(): void {
    for (const [name, listener] of Object.entries(this.#listeners)) this.#monitor.events.off(name, listener);
  }

  #see(sign: string): void {
    this.#sign ??= sign;
  }

  /**
   * A snapshot that is loaded into a guest that stands shows by its job alone (QEMU 10.0.2). A new job that was dismissed before it
   * could be looked at may have been one.
   */
  async #lookAtJob(id: unknown): Promise<void> {
    // An id may be given anew: what the job was at the stop counts only where it is gone.
    const type = (await this.#typesOfJobs()).get(id) ?? this.#jobs.get(id);
    if (type === undefined || type === 'snapshot-load') this.#see(`job ${type ?? id}`);
  }

  async #typesOfJobs(): Promise<ReadonlyMap<unknown, string>> {
    const jobs = await queryJobs(this.#monitor).catch(() => []);
    return new Map(jobs.map(({ id, type }) => [id, type]));
  }
}
