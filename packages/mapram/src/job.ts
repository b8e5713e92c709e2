import { setTimeout as delay } from 'node:timers/promises';
import { asMapramError, type GuestState } from './errors.ts';
import type { ExecuteOptions } from './guest/monitor.ts';
import type { OwningJob } from './guest/owner.ts';
import type { JobResult, Job as NativeJob } from './native.ts';
import { within } from './within.ts';

/** What a job is doing: getting ready, moving pages, or bringing it to an end. */
export type Phase = 'prepare' | 'transfer' | 'finish';

/** How far a job is. */
export interface Progress {
  /** What it is doing. */
  phase: Phase;
  /** Bytes of data moved. */
  bytesDone: number;
  /** Bytes of data to be moved; 0 until that is known. */
  bytesTotal: number;
  /** What users should know meanwhile, in one sentence: that the storage does not answer, say. */
  notice?: string | undefined;
}

/** The promise of a job's report. */
export interface JobPromise<T> extends Promise<T> {
  /** How far the job is, ten times a second; ends when the job settles, and never throws. */
  readonly progress: AsyncIterable<Progress>;
  /**
   * How the guest was left by a job that failed or was cancelled, once it has settled; undefined if nothing had reached it. A
   * MapramError says the same, but a cancelled job rejects with the signal's own reason.
   */
  readonly guestState: GuestState | undefined;
}

const PROGRESS_INTERVAL_MS = 100;
/** Storage that ends no request for so long is named. */
const SILENCE_MS = 10_000;

/** What a running job has at hand. */
export class JobContext implements OwningJob {
  /** Aborted when the caller cancels. */
  readonly signal: AbortSignal;
  guestState: GuestState | undefined;
  onFailing: (() => void) | undefined;
  notice: string | undefined;
  silence: string | undefined;
  writingSince: number | undefined;
  #progress: Progress = { phase: 'prepare', bytesDone: 0, bytesTotal: 0 };
  /** Whether a guest that ran stands still, and is let run if the job is cancelled now. */
  holdsGuest = false;
  /** Bytes of guest memory that went through a buffer of ours. */
  copiedBytes = 0;
  #counting: NativeJob | undefined;
  #running: NativeJob | undefined;
  readonly #cpuAtStart = process.cpuUsage();

  constructor(signal: AbortSignal = new AbortController().signal) {
    this.signal = signal;
  }

  /** What goes with the job's QMP commands, except those that put the guest back. */
  get commandOptions(): ExecuteOptions {
    return { signal: this.signal };
  }

  /** Makes known that the job has come to another phase. */
  enter(phase: Phase, bytesTotal: number = this.#progress.bytesTotal): void {
    this.#progress = { phase, bytesDone: this.progress().bytesDone, bytesTotal };
  }

  /** How far the job is. */
  progress(): Progress {
    const bytesDone = this.#counting?.progress().bytesDone ?? this.#progress.bytesDone;
    return { ...this.#progress, bytesDone, notice: this.silence ?? this.notice };
  }

  /** Processor seconds that this process spent since the job began. */
  cpuSeconds(): number {
    const { user, system } = process.cpuUsage(this.#cpuAtStart);
    return (user + system) / 1e6;
  }

  /** Runs work of the addon that moves pages, counting its progress as this job's. */
  async transfer(work: NativeJob): Promise<JobResult> {
    this.#counting = work;
    try {
      const result = await this.run(work);
      this.copiedBytes += result.copiedBytes;
      return result;
    } finally {
      this.#progress = this.progress();
      this.#counting = undefined;
    }
  }

  /** Runs work of the addon; when the caller cancels, it is cancelled and has drained before this rejects. */
  async run(work: NativeJob): Promise<JobResult> {
    this.signal.throwIfAborted();
    const cancel = (): void => work.cancel();
    this.signal.addEventListener('abort', cancel, { once: true });
    try {
      return await this.#watched(work, () => this.signal.aborted || work.progress().stopping);
    } catch (error) {
      this.signal.throwIfAborted();
      throw error;
    } finally {
      this.signal.removeEventListener('abort', cancel);
    }
  }

  /**
   * Waits for an answer that storage may keep. A thread that hangs in the kernel cannot be cancelled: when the caller cancels, this
   * rejects at once.
   *
   * @param undo gets what comes of it then, however late.
   */
  async answer<T>(question: Promise<T>, undo: (late: T) => unknown = () => {}): Promise<T> {
    const before = this.notice;
    const timer = setTimeout(() => {
      this.notice = storageIsSilent(this.holdsGuest);
    }, SILENCE_MS);
    try {
      return await within(question, { signal: this.signal });
    } catch (error) {
      question.then(undo).catch(() => {});
      throw error;
    } finally {
      clearTimeout(timer);
      this.notice = before;
    }
  }

  async memoryIsLeft(): Promise<void> {
    // The first wait lets those who cancel the work do so.
    do await delay(0);
    while (this.#running?.progress().reading);
  }

  /** Runs work of the addon that tidies up after the job, cancelled or not; whether it could changes nothing any more. */
  async tidyUp(work: NativeJob): Promise<void> {
    await this.#watched(work, () => true).catch(() => {});
  }

  /** Runs work of the addon, and tells of storage that hangs. While the work can only end, nobody who could go on waits for it. */
  async #watched(work: NativeJob, isEnding: () => boolean): Promise<JobResult> {
    const before = this.notice;
    let moved = 0;
    let movedAt = performance.now();
    let isTold = false;
    const look = (): void => {
      const now = performance.now();
      const { completions, bytesDone } = work.progress();
      if (completions + bytesDone !== moved) movedAt = now;
      moved = completions + bytesDone;
      const isStalled = now - movedAt >= SILENCE_MS && (isEnding() || work.needsStorage);
      if (isEnding() && !isTold) this.onFailing?.();
      isTold = isEnding();
      this.notice = isStalled ? storageIsSilent(this.holdsGuest && !isEnding()) : before;
    };
    const timer = setInterval(look, PROGRESS_INTERVAL_MS);
    this.#running = work;
    try {
      return await work.run();
    } finally {
      this.#running = undefined;
      clearInterval(timer);
      const { writingMs } = work.progress();
      if (writingMs !== undefined) this.writingSince ??= performance.now() - writingMs;
      this.notice = before;
    }
  }
}

function storageIsSilent(mayResume: boolean): string {
  const silence = `the storage has not answered for ${SILENCE_MS / 1000} s`;
  return mayResume ? `${silence}; an interrupt lets the guest run` : silence;
}

/** Runs `work` and lets its promise carry the progress. What `work` throws at once becomes a rejection too. */
export function startJob<T>(
  signal: AbortSignal | undefined,
  work: (job: JobContext) => Promise<T>,
): JobPromise<T> {
  // What is no signal is refused by the options' check, as a rejection like every other failure.
  const job = new JobContext(signal instanceof AbortSignal ? signal : undefined);
  let isSettled = false;
  const report = Promise.resolve()
    .then(() => {
      job.signal.throwIfAborted();
      return work(job);
    })
    .catch((error: unknown) => {
      throw job.signal.aborted && error === job.signal.reason ? error : asMapramError(error);
    })
    .finally(() => {
      isSettled = true;
    });
  /** Each iteration sees the job from where it then is to its end. */
  async function* watch(): AsyncGenerator<Progress, void, undefined> {
    // Not before somebody looks: a failure of which nobody takes note at all is Node's to tell of.
    const settled = report.catch(() => {});
    while (!isSettled) {
      yield job.progress();
      await Promise.race([settled, delay(PROGRESS_INTERVAL_MS, undefined, { ref: false })]);
    }
    yield job.progress();
  }
  return Object.defineProperties(report, {
    progress: { value: { [Symbol.asyncIterator]: watch }, enumerable: true },
    guestState: { get: () => job.guestState, enumerable: true },
  }) as JobPromise<T>;
}
