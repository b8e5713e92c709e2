import { setTimeout as delay } from 'node:timers/promises';
import { asMapramError, following, type GuestState, MapramError } from '../errors.ts';
import { ProcessHandle } from '../native.ts';
import { endsWithin } from './ends-within.ts';
import { type Guest, type GuestLink, openGuest } from './link.ts';
import { PUT_BACK_TIMEOUT_MS } from './monitor.ts';
import { confirmGuestProcess, findGuestProcess } from './process.ts';
import { queryStatus } from './queries.ts';
import { isLive, RunWatch, requireNotMigratedSince } from './run-state.ts';
import type { Notice } from './silence.ts';

/** A process that was killed closes its connections and then takes its time to end. */
const DEATH_TIMEOUT_MS = 5_000;
/** One whose memory is gone already is giving it up: hundreds of gigabytes of small pages take many seconds. */
const TEAR_DOWN_TIMEOUT_MS = 60_000;
/** QEMU takes the next client when it has noticed that the last one has gone; another client may be faster than we are. */
const RECONNECT_TIMEOUT_MS = 30_000;
const RECONNECT_INTERVAL_MS = 50;
/** For commands on which the guest's fate hangs. */
const PATIENT = { timeoutMs: PUT_BACK_TIMEOUT_MS };
/** How long QEMU is asked how its guest is, before what we know of it has to do. */
const ASK_TIMEOUT_MS = 5_000;

/** The job that a guest is owned for. */
export interface OwningJob {
  /** Aborted when the job is cancelled. */
  readonly signal: AbortSignal;
  /** How the guest was left, once that is known. */
  guestState: GuestState | undefined;
  /** Settles when no work of the addon looks at the guest's memory any more; that work must be stopping. */
  memoryIsLeft(): Promise<void>;
  /** Called when work of the addon has failed, though it may take long to end. */
  onFailing: (() => void) | undefined;
  /** When work of the addon first wrote to the guest's memory, by `performance.now()`, once it has ended. */
  readonly writingSince: number | undefined;
  /** Something that users should know, for which no error has a place. */
  notice: string | undefined;
  /** That QEMU keeps a command waiting, while it does. */
  silence: string | undefined;
}

/**
 * How far the job with the guest is, which decides what a failure leaves behind: `untouched`; a save has it `stopped`, `resumed`
 * (and left to whoever pauses it then), is `publishing` its image,
 * has `perhapsPublished` it, or has `published` it; a restore has `begun` to write into it, or `restored` it.
 */
type Stage =
  | 'untouched'
  | 'stopped'
  | 'resumed'
  | 'publishing'
  | 'perhapsPublished'
  | 'published'
  | 'begun'
  | 'restored';

/** What is done for good by some stages, whatever fails after it. */
const OUTCOMES: Readonly<Partial<Record<Stage, string>>> = {
  perhapsPublished: 'image is whole and may be in its place',
  published: 'image is whole and in its place',
  restored: 'guest is restored in full',
};

/**
 * A guest in the hands of one job, from before anything happens to it until it is left: as it was found, or as the job was told.
 * What putting it back takes (a connection to its monitor, a pidfd of its process) is held from before it is stopped.
 */
export class GuestOwner {
  readonly #guest: Guest;
  readonly #job: OwningJob;
  #link: GuestLink;
  #pid: number | undefined;
  /** The guest's process, once it was found. */
  #process: ProcessHandle | undefined;
  /** What listens on the guest's socket: all that can be asked before. */
  #peer: ProcessHandle | undefined;
  #stage: Stage = 'untouched';
  #watch: RunWatch | undefined;
  /** The state that the guest was found in, once it is held. */
  #found: string | undefined;
  /** Why a lost connection could not be had again. */
  #unreachable: unknown;
  /** When the guest was stopped, or first written to. */
  #since = 0;
  #resumedAt: number | undefined;
  #resuming: Promise<void> | undefined;

  private constructor(guest: Guest, job: OwningJob, link: GuestLink) {
    this.#guest = guest;
    this.#job = job;
    this.#link = link;
    this.#peer = ProcessHandle.tryOpen(link.peerPid ?? 0);
    job.signal.addEventListener('abort', this.#putBackAtOnce);
    job.onFailing = this.#putBackAtOnce;
  }

  /**
   * Connects to the guest.
   *
   * @throws {MapramError} with the guest's state; or the signal's reason.
   */
  static async open(guest: Guest, job: OwningJob): Promise<GuestOwner> {
    try {
      return new GuestOwner(guest, job, await openGuest(guest, job.signal, silenceOf(job)));
    } catch (error) {
      const isGone = error instanceof MapramError && error.code === 'E_GUEST_GONE';
      job.guestState = isGone ? 'gone' : 'untouched';
      throw isReason(error, job.signal) ? error : asMapramError(error).leaving(job.guestState);
    }
  }

  /** The connection to the guest. */
  get link(): GuestLink {
    return this.#link;
  }

  /** Whether the guest ran when it was found. */
  get wasLive(): boolean {
    return isLive(this.#found ?? '');
  }

  /** Milliseconds since the guest was stopped, or first written to. */
  get heldMs(): number {
    return performance.now() - this.#since;
  }

  /** Milliseconds for which a guest that ran has stood still. */
  get pauseMs(): number {
    return this.wasLive ? (this.#resumedAt ?? performance.now()) - this.#since : 0;
  }

  /**
   * The number of the guest's process, which is held by a pidfd from then on.
   *
   * @throws {MapramError} as {@link findGuestProcess} does; E_HOST_UNSUPPORTED without a descriptor for it.
   */
  async find(): Promise<number> {
    const pid = await findGuestProcess(this.#link);
    this.#process = ProcessHandle.open(pid);
    this.#process.lock();
    this.#link.process = this.#process;
    this.#pid = pid;
    return pid;
  }

  /**
   * Stops the guest if it runs, and returns the state that it was found in. From here on every way out puts it back.
   *
   * @param before the state that it was in when the job began.
   * @throws {MapramError} E_GUEST_RAN if it was migrated away since then.
   */
  async stop(before: string): Promise<string> {
    this.#watch = new RunWatch(this.#link.monitor);
    return this.#watch.stop(before, this.#link.options, (found) => {
      this.#stage = 'stopped';
      this.#found = found;
      this.#since = performance.now();
    });
  }

  /** @throws {MapramError} E_GUEST_RAN if the guest ran since it was stopped. */
  async requireStill(): Promise<void> {
    await this.#watch?.requireStill(this.#link.monitor, this.#link.options);
  }

  /** Lets the guest run as soon as its memory is not needed any more. Should it not, it is told again at the end. */
  async resumeEarly(): Promise<void> {
    await this.#resume().catch(() => {});
  }

  /**
   * Gives the image its name by `publish`. Until it is known what came of that, the guest is left as it is.
   *
   * @param isPublished whether the image has its name, or may have it, though `publish` has failed.
   */
  async publish(publish: () => Promise<unknown>, isPublished: () => boolean): Promise<void> {
    const before = this.#stage;
    this.#stage = 'publishing';
    try {
      await publish();
    } catch (error) {
      this.#stage = isPublished() ? 'perhapsPublished' : before;
      throw error;
    }
    this.#stage = 'published';
  }

  /** After the image was published: leaves the guest as it shall be, which is not cancelled any more, and says how it is. */
  async settle(then: 'pause' | 'resume' | 'quit'): Promise<'running' | 'paused' | 'gone'> {
    if (then === 'quit') {
      await this.#quit();
      return 'gone';
    }
    if (then === 'resume' && this.#resumedAt === undefined) await this.#resume();
    return this.#ask();
  }

  /** To be called right before QEMU itself loads anything: from then on it cannot be used for anything else. */
  begin(): void {
    this.#stage = 'begun';
    this.#since = this.#job.writingSince ?? performance.now();
  }

  /** To be called when QEMU has loaded the guest, with the state that it then is in. */
  loaded(state: string): void {
    this.#stage = 'restored';
    this.#found = state;
  }

  /** After the guest was restored, and stands still: lets it run if it shall, which is not cancelled any more. */
  async finish(shallRun: boolean): Promise<'running' | 'paused'> {
    if (shallRun) await this.#resume();
    const state = await this.#ask();
    if (state === 'gone') throw new MapramError('E_GUEST_GONE', "QEMU's process has ended");
    return state;
  }

  /** Does what may be done twice, if need be over a new connection. */
  async insist<T>(act: () => Promise<T>): Promise<T> {
    return act().catch(async (error: unknown) => {
      this.#noteWriting();
      // One that holds half a guest is started anew.
      if (this.#stage !== 'begun' && (await this.#isReconnected())) return act();
      if (this.#unreachable === undefined) throw error;
      throw following('E_QMP', 'the connection to QEMU was lost for good:', this.#unreachable);
    });
  }

  /**
   * After a failure: puts the guest back, takes note of how that leaves it, and returns the error to throw. A cancel's reason is
   * returned as it is, for it is the caller's.
   */
  async explain(error: unknown): Promise<unknown> {
    this.#noteWriting();
    const failure = this.#mustPutBack ? await this.#resume().then(nothing, asMapramError) : undefined;
    const state = await this.#stateAfter(error);
    this.#job.guestState = state;
    const complaint = state === 'paused' ? failure?.message : undefined;
    if (isReason(error, this.#job.signal)) {
      const outcome = OUTCOMES[this.#stage];
      this.#job.notice = outcome === undefined ? complaint : `the ${outcome}`;
      return error;
    }
    const described = this.#describe(asMapramError(error), state);
    // What keeps the guest from running may be what has failed.
    const isNew = complaint !== undefined && !complaint.endsWith(described.message);
    return described.leaving(state, isNew ? `${described.message}; and ${complaint}` : undefined);
  }

  /** Ends the connection and gives everything up, whatever a monitor of the caller's has to say about that. */
  release(): void {
    this.#job.signal.removeEventListener('abort', this.#putBackAtOnce);
    this.#job.onFailing = undefined;
    this.#watch?.release();
    this.#process?.close();
    this.#peer?.close();
    this.#link.close();
  }

  /** What the engine has written, it alone knows. */
  #noteWriting(): void {
    if (this.#stage === 'untouched' && this.#job.writingSince !== undefined) this.begin();
  }

  get #mustPutBack(): boolean {
    return this.#stage === 'stopped' && this.wasLive;
  }

  /** Nothing needs the guest while what has failed or was cancelled comes to its end. */
  readonly #putBackAtOnce = (): void => {
    if (!this.#mustPutBack) return;
    const resume = async (): Promise<void> => {
      if (!this.#mustPutBack) return;
      await this.#resume();
      this.#job.guestState = 'running';
    };
    this.#job.memoryIsLeft().then(resume).catch(nothing);
  };

  /** Lets the guest run; once at a time, whoever asks. It is no matter of ours then: another client may have paused it since. */
  #resume(): Promise<void> {
    this.#resuming ??= this.#cont().finally(() => {
      this.#resuming = undefined;
    });
    return this.#resuming;
  }

  /** Lets the guest run, if need be over a new connection. */
  async #cont(): Promise<void> {
    try {
      await this.insist(() => this.#contUnlessMigrated());
    } catch (error) {
      throw following(undefined, 'the guest could not be resumed:', error);
    }
    this.#resumedAt = performance.now();
    if (this.#stage === 'stopped') this.#stage = 'resumed';
  }

  async #quit(): Promise<void> {
    // To give the image its name may have taken long, and what the guest has done since is in no image.
    const sign = await this.#findSign().catch(async (error: unknown) => {
      // One that has ended by itself meanwhile is as it shall be.
      if (!(await this.#endsWithin(DEATH_TIMEOUT_MS))) throw error;
      return undefined;
    });
    if (sign !== undefined) {
      const message = `someone else used the guest since (${sign}), so it was not ended`;
      throw new MapramError('E_GUEST_RAN', message);
    }
    // Sent once only: a QEMU that ends closes the connection, and a monitor of the caller's says so in words of its own.
    const failure = await this.#link.monitor.execute('quit', {}, PATIENT).then(nothing, asMapramError);
    // One that obeys takes no new connection.
    const goesOn = failure !== undefined && (!this.#link.isLost() || (await this.#isReconnected()));
    // Whoever starts the next QEMU on the same disks finds them locked until this one has closed and ended.
    const timer = setTimeout(() => {
      this.#job.silence = 'QEMU was told to quit, and its process has not ended yet';
    }, DEATH_TIMEOUT_MS);
    const hasEnded = await this.#endsWithin(goesOn ? DEATH_TIMEOUT_MS : PUT_BACK_TIMEOUT_MS);
    clearTimeout(timer);
    if (hasEnded) return;
    const late = new MapramError('E_QMP', 'its process has not ended');
    throw following(undefined, 'QEMU could not be ended:', failure ?? late);
  }

  /** A sign that someone else used the guest since it was stopped. Nobody sees any over a connection that was lost. */
  async #findSign(): Promise<string | undefined> {
    if (!this.#link.isLost()) return this.#watch?.findSign(this.#link.monitor, PATIENT);
    const reason = 'the connection to QEMU was lost, so nobody knows whether the guest stood still';
    throw new MapramError('E_QMP', `${reason}, and it was not ended`);
  }

  /** Whether the guest's process ends soon, if it is known. */
  async #endsWithin(timeoutMs: number): Promise<boolean> {
    return this.#process !== undefined && endsWithin(this.#process, timeoutMs);
  }

  /**
   * A guest that someone has migrated away meanwhile runs elsewhere. A QEMU that does not say how it is gets the command, unless it
   * was seen migrated.
   */
  async #contUnlessMigrated(): Promise<void> {
    const status = (await this.#status()) ?? this.#watch?.lastStatus ?? '';
    if (this.#found !== undefined) requireNotMigratedSince(this.#found, status);
    await this.#link.monitor.execute('cont', {}, PATIENT);
  }

  /** Whether there is a new connection in the place of one that was lost, to the same QEMU, which still lives. */
  async #isReconnected(): Promise<boolean> {
    if (!this.#link.isLost() || this.#process === undefined || this.#unreachable !== undefined) return false;
    this.#job.silence = 'the connection to QEMU was lost; mapram tries to connect again';
    this.#unreachable = await this.#reconnect(this.#process);
    this.#job.silence = undefined;
    return this.#unreachable === undefined;
  }

  /** Connects again; returns why it could not. */
  async #reconnect(process: ProcessHandle): Promise<unknown> {
    const deadline = performance.now() + RECONNECT_TIMEOUT_MS;
    for (;;) {
      if (process.hasEnded()) return new MapramError('E_GUEST_GONE', "QEMU's process has ended");
      try {
        this.#link = await this.#openAgain(process);
        return undefined;
      } catch (error) {
        // Another QEMU may listen there now, and will go on to.
        const isOther = error instanceof MapramError && error.code === 'E_GUEST_MISMATCH';
        if (isOther || performance.now() > deadline) return error;
      }
      await delay(RECONNECT_INTERVAL_MS);
    }
  }

  /** A new connection to the same QEMU: by now another one may listen there, which must not be told anything. */
  async #openAgain(process: ProcessHandle): Promise<GuestLink> {
    const link = await openGuest(this.#guest, undefined, silenceOf(this.#job));
    try {
      await confirmGuestProcess(link, this.#pid ?? 0);
      if (process.hasEnded()) throw new MapramError('E_GUEST_GONE', "QEMU's process has ended");
      return link;
    } catch (error) {
      link.close();
      throw error;
    }
  }

  async #stateAfter(error: unknown): Promise<GuestState> {
    if (await this.#isGone(error)) return 'gone';
    if (this.#stage === 'untouched') return 'untouched';
    return this.#stage === 'begun' ? 'unusable' : this.#ask();
  }

  /** Only the process itself tells that it has ended; where it is out of our sight, the end of the connection has to do. */
  async #isGone(error: unknown): Promise<boolean> {
    const code = error instanceof MapramError ? error.code : undefined;
    const looksGone = code === 'E_GUEST_GONE';
    const process = this.#process ?? this.#peer;
    if (process === undefined) return looksGone;
    if (this.#link.isLost()) return endsWithin(process, DEATH_TIMEOUT_MS);
    // A monitor of the caller's has words of its own for a connection that is lost.
    const mayBeDying = looksGone || ('monitor' in this.#guest && code === 'E_QMP');
    if (!mayBeDying || (await this.#status()) !== undefined) return process.hasEnded();
    return endsWithin(process, looksGone ? TEAR_DOWN_TIMEOUT_MS : DEATH_TIMEOUT_MS);
  }

  /** How the guest is, by QEMU; or as we know it, if QEMU does not say and lives. */
  async #ask(): Promise<'running' | 'paused' | 'gone'> {
    let status = await this.#status();
    if (status === undefined && (await this.#isReconnected())) status = await this.#status();
    if (status === undefined && (await this.#endsWithin(DEATH_TIMEOUT_MS))) return 'gone';
    const runs = status === undefined ? this.#resumedAt !== undefined : isLive(status);
    return runs ? 'running' : 'paused';
  }

  /** The guest's state, by QEMU; undefined if it does not say. */
  async #status(): Promise<string | undefined> {
    const answer = await queryStatus(this.#link.monitor, { timeoutMs: ASK_TIMEOUT_MS }).catch(nothing);
    return answer?.status;
  }

  #describe(thrown: MapramError, state: GuestState): MapramError {
    const error = this.#blame(thrown, state);
    if (this.#stage === 'begun') {
      const message = 'The guest was restored in part only, so its QEMU must be started anew:';
      return following('E_RESTORE_INCOMPLETE', message, error);
    }
    const outcome = OUTCOMES[this.#stage];
    return outcome === undefined ? error : following(undefined, `The ${outcome}, but`, error);
  }

  /** A QEMU that dies shows in many ways: a read that fails, a connection that closes, an answer that does not come. */
  #blame(error: MapramError, state: GuestState): MapramError {
    const isGone = error.code === 'E_GUEST_GONE';
    if (state === 'gone' && (error.code === 'E_IO' || error.code === 'E_QMP'))
      return following('E_GUEST_GONE', "QEMU's process ended:", error);
    if (state !== 'gone' && isGone && (this.#process ?? this.#peer) !== undefined)
      return following('E_QMP', 'the connection to QEMU was lost, though its process lives:', error);
    return error;
  }
}

function silenceOf(job: OwningJob): Notice {
  return (text) => {
    job.silence = text;
  };
}

function isReason(error: unknown, signal: AbortSignal): boolean {
  return signal.aborted && error === signal.reason;
}

function nothing(): undefined {}
