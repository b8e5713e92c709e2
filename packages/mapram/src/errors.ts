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
  /** How the guest was left; set by save and restore when they fail. */
  guestState: GuestState | undefined;

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
}
