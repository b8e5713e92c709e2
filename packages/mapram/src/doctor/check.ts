import { describeCauses, type ErrorCode, MapramError } from '../errors.ts';

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
  code?: ErrorCode;
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

/** A save cannot work, as `error` shows. */
export function failed(what: string, error: unknown, advice: string): Finding {
  const finding = fail(`${what}${messageOf(error)}`, advice);
  return error instanceof MapramError ? { ...finding, code: error.code } : finding;
}

/** The message of anything thrown, with the system's own words. */
export function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const reasons = describeCauses(error);
  return reasons === undefined || error.message.includes(reasons)
    ? error.message
    : `${error.message} (${reasons})`;
}
