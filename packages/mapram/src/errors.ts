/** Exit status of the command line for each error code; docs/errors.md explains every one. */
export const EXIT_STATUS = {
  E_TARGET_EXISTS: 1,
  E_TARGET_BUSY: 1,
  E_NOT_FOUND: 1,
  E_NO_SPACE: 1,
  E_IO: 1,
  E_RESTORE_INCOMPLETE: 1,
  E_USAGE: 2,
  E_IMAGE_INVALID: 3,
  E_HOST_UNSUPPORTED: 4,
  E_PERMISSION: 4,
  E_GUEST_MISMATCH: 5,
  E_GUEST_UNSUPPORTED: 5,
  E_GUEST_RAN: 5,
  E_GUEST_GONE: 5,
  E_QMP: 5,
  E_INTERNAL: 6,
  E_CANCELLED: 130,
} as const;

/** A stable error code. */
export type ErrorCode = keyof typeof EXIT_STATUS;

/** How a failed job left the guest. `untouched`: nothing was sent to it that changes it. */
export type GuestState = 'running' | 'paused' | 'unusable' | 'gone' | 'untouched';

/** Where an error happened, and how it left the guest. */
export interface ErrorContext {
  /** The file concerned. */
  path?: string | undefined;
  /** Byte offset in that file. */
  offset?: number | undefined;
  /** The field of the image or the option concerned. */
  field?: string | undefined;
  /** How the guest was left. */
  guestState?: GuestState | undefined;
  /** The underlying error. */
  cause?: unknown;
}

/** Every error that mapram raises on purpose. */
export class MapramError extends Error {
  /** The stable code. */
  readonly code: ErrorCode;
  /** The file concerned. */
  readonly path: string | undefined;
  /** Byte offset in that file. */
  readonly offset: number | undefined;
  /** The field of the image or the option concerned. */
  readonly field: string | undefined;
  /** How the guest was left, where save or restore failed. */
  readonly guestState: GuestState | undefined;

  /** @param message one sentence that names what is wrong and, where there is one, what to do. */
  constructor(code: ErrorCode, message: string, context: ErrorContext = {}) {
    super(message, context.cause === undefined ? undefined : { cause: context.cause });
    this.name = 'MapramError';
    this.code = code;
    this.path = context.path;
    this.offset = context.offset;
    this.field = context.field;
    this.guestState = context.guestState;
  }

  /** A copy that says how the guest was left: an error may be shared by several jobs, a guest's state belongs to one. */
  leaving(guestState: GuestState, message: string = this.message): MapramError {
    return new MapramError(this.code, message, { ...this, cause: this.cause, guestState });
  }

  /** A copy that names this file. */
  at(path: string): MapramError {
    return new MapramError(this.code, this.message, { ...this, cause: this.cause, path });
  }
}

/**
 * The error for what failed because of `cause`. It names the same place, unless `context` knows better.
 *
 * @param code undefined for the code of the cause.
 * @param what a sentence whose end is the message of the cause.
 */
export function following(
  code: ErrorCode | undefined,
  what: string,
  cause: unknown,
  context: ErrorContext = {},
): MapramError {
  const error = asMapramError(cause);
  const place = { ...error, guestState: undefined };
  return new MapramError(code ?? error.code, `${what} ${error.message}`, { ...place, cause, ...context });
}

/** Codes for what the system refuses to Node's own calls, each with the errnos that it stands for; E_IO for all others. */
const REFUSALS: readonly [code: ErrorCode, ...errnos: string[]][] = [
  ['E_NOT_FOUND', 'ENOENT', 'ENOTDIR'],
  ['E_PERMISSION', 'EACCES', 'EPERM', 'EROFS'],
  ['E_NO_SPACE', 'ENOSPC', 'EDQUOT', 'EFBIG'],
  ['E_HOST_UNSUPPORTED', 'EMFILE', 'ENFILE', 'ENOMEM', 'ENOSYS'],
];

/** Anything thrown as a MapramError: a refusal of the system by its errno; all else is a bug of ours, E_INTERNAL. */
export function asMapramError(thrown: unknown): MapramError {
  if (thrown instanceof MapramError) return thrown;
  const message = messageOf(thrown);
  // Node names the call that the system refused.
  if (thrown instanceof Error && 'syscall' in thrown) {
    const { code: errno = '', path } = thrown as NodeJS.ErrnoException;
    const [code] = REFUSALS.find(([, ...errnos]) => errnos.includes(errno)) ?? (['E_IO'] as const);
    return new MapramError(code, message, { path, cause: thrown });
  }
  return new MapramError('E_INTERNAL', `a bug in mapram, please report it: ${message}`, { cause: thrown });
}

/** The message of anything thrown. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

/**
 * What stands behind an error: the reasons of its reasons, outermost first. Each is said once, and none that the error's own
 * message says already, unless nothing else is left.
 */
export function describeCauses(error: Error): string | undefined {
  const told = [error.message];
  const reasons = causesOf(error).map(messageOf);
  for (const reason of reasons) {
    if (!told.some((text) => text.includes(reason))) told.push(reason);
  }
  return told.length > 1 ? told.slice(1).join(': ') : reasons.at(-1);
}

/** The file concerned and the offset in it, by the error or the first of its reasons that knows them. */
export function placeOf(error: MapramError): Pick<MapramError, 'path' | 'offset'> {
  const isPlace = (cause: unknown): cause is MapramError =>
    cause instanceof MapramError && cause.path !== undefined;
  const { path, offset } = [error, ...causesOf(error)].find(isPlace) ?? error;
  return { path, offset: error.offset ?? offset };
}

function causesOf({ cause }: Error): unknown[] {
  if (cause === undefined || cause === null) return [];
  return cause instanceof Error ? [cause, ...causesOf(cause)] : [cause];
}
