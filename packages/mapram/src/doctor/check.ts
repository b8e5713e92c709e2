import { describeCauses, type ErrorCode, EXIT_STATUS, MapramError } from '../errors.ts';

/** One thing that {@link doctor} looked at. */
export interface Check {
  /** Stable name, for scripts: `kernel`, `engine-io-uring`, `direct-io`, ... */
  name: string;
  /** Whose it is: this host's, or the guest's. */
  area: 'host' | 'guest';
  /** `ok`; `warn`: a save works, but slower or not in every case; `fail`: a save cannot work. */
  status: 'ok' | 'warn' | 'fail';
  /** What was found, in one sentence. */
  message: string;
  /** What to do about it; given with `warn` and `fail`. */
  advice?: string;
  /** The code of the error that a save would meet, where it is known; only with `fail`. */
  code?: ErrorCode | undefined;
}

/** What a check found, before it is known by name. */
export type Finding = Omit<Check, 'name' | 'area'>;

/** Everything is as it should be. */
export function ok(message: string): Finding {
  return { status: 'ok', message };
}

/** A save works, but slower or not in every case. */
export function warn(message: string, advice: string): Finding {
  return { status: 'warn', message, advice };
}

/** A save cannot work until something is done. */
export function fail(message: string, advice: string): Finding {
  return { status: 'fail', message, advice };
}

/** The message of anything thrown, with the system's own words. */
export function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const reasons = describeCauses(error);
  return reasons === undefined || error.message.includes(reasons)
    ? error.message
    : `${error.message} (${reasons})`;
}

/** A finding, and what else the checks that follow need of it. */
type Found<T> = Finding & { value?: T };

/** The checks of the host, or of the guest. */
export class Checklist {
  /** The checks so far. */
  readonly checks: Check[] = [];
  readonly #area: Check['area'];
  /** Ends the examination. */
  readonly signal: AbortSignal;

  constructor(area: Check['area'], signal: AbortSignal) {
    this.#area = area;
    this.signal = signal;
  }

  /** Whether the latest check failed. */
  get hasFailed(): boolean {
    return this.checks.at(-1)?.status === 'fail';
  }

  /** Adds what was found. */
  note(name: string, finding: Finding, area: Check['area'] = this.#area): void {
    this.checks.push({ name, area, ...finding });
  }

  /**
   * Adds what `work` finds, or its failure, whose message stands behind `what`.
   *
   * @param advice what to do about a failure, unless its code tells more.
   * @returns the value that comes with the finding; undefined after a failure.
   */
  async look<T>(
    name: string,
    advice: string,
    work: () => Found<T> | Promise<Found<T>>,
    what = '',
  ): Promise<T | undefined> {
    try {
      const { value, ...finding } = await work();
      this.note(name, finding);
      return value;
    } catch (error) {
      this.signal.throwIfAborted();
      const code = error instanceof MapramError ? error.code : undefined;
      const better = this.#area === 'guest' ? adviceFor(code) : undefined;
      const finding = { ...fail(`${what}${messageOf(error)}`, better ?? advice), code };
      // A refusal by the kernel is the host's matter.
      this.note(name, finding, code !== undefined && EXIT_STATUS[code] === 4 ? 'host' : this.#area);
      return undefined;
    }
  }
}

/** What to do about a failure of the guest's whose code tells more than the check that met it. */
function adviceFor(code: ErrorCode | undefined): string | undefined {
  if (code === 'E_PERMISSION') return 'run mapram as root with CAP_SYS_PTRACE, or as the user that runs QEMU';
  if (code === 'E_GUEST_UNSUPPORTED' || code === 'E_HOST_UNSUPPORTED') return `docs/errors.md, ${code}`;
  return undefined;
}
