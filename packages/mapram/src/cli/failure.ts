import {
  describeCauses,
  type ErrorCode,
  EXIT_STATUS,
  type GuestState,
  type MapramError,
  placeOf,
} from '../errors.ts';
import { SCHEMA_VERSION } from './outcome.ts';

/** The JSON object for `error`. A state that was never set means that nothing had reached the guest. */
export function failureReport(error: MapramError): object {
  const { code, message, field, guestState = 'untouched' } = error;
  return {
    schemaVersion: SCHEMA_VERSION,
    ok: false,
    error: { code, message, ...placeOf(error), field, cause: describeCauses(error) },
    guestState,
  };
}

/** What a person reads on stderr about `error`. */
export function failureText(error: MapramError): string {
  const lines = [`mapram: ${error.message} (${error.code})`];
  const place = placeText(error);
  if (place !== '') lines.push(`  ${place}`);
  const cause = describeCauses(error);
  if (cause !== undefined && !error.message.includes(cause)) lines.push(`  cause: ${cause}`);
  const what = `${error.message}: ${cause}`;
  const [, , advice] = WAYS_OUT.find(([code, about]) => code === error.code && about.test(what)) ?? [];
  if (advice !== undefined) lines.push(`  ${advice}.`);
  // Whoever looks for the bug needs to know where it is.
  if (error.code === 'E_INTERNAL' && error.cause instanceof Error) lines.push(`  ${error.cause.stack}`);
  if (error.guestState !== undefined) lines.push(`  ${guestSentence(error.code, error.guestState)}`);
  return `${lines.join('\n')}\n`;
}

/** The exit status for `error`; an interrupted command exits by its signal's number. */
export function exitStatus(error: MapramError, signalStatus?: number): number {
  if (error.code === 'E_CANCELLED' && signalStatus !== undefined) return signalStatus;
  return EXIT_STATUS[error.code];
}

const GUEST_SENTENCES: Record<GuestState, string> = {
  running: 'The guest is running.',
  paused: 'The guest is paused; the QMP command cont resumes it.',
  unusable: 'The QEMU that was to be restored holds half a guest: end it and start it anew.',
  gone: "The guest's process is gone.",
  untouched: 'The guest was not touched.',
};

function guestSentence(code: ErrorCode, state: GuestState): string {
  if (code !== 'E_GUEST_RAN' || state !== 'paused') return GUEST_SENTENCES[state];
  // It may run elsewhere.
  return 'The guest is paused; the QMP command cont resumes it, but see first what the other client does with it.';
}

/** Options and shell commands that help; the library and the engine know nothing of them. */
const WAYS_OUT: readonly [code: ErrorCode, about: RegExp, advice: string][] = [
  ['E_TARGET_EXISTS', /not asked for/, 'The option --force does so'],
  ['E_HOST_UNSUPPORTED', /one that may be replaced/, 'The option --force lets it be replaced'],
  ['E_GUEST_UNSUPPORTED', /name its process/, 'The option --pid does so'],
  ['E_HOST_UNSUPPORTED', /direct I\/O/, 'The option --no-direct goes without direct I/O'],
  ['E_HOST_UNSUPPORTED', /too many open files(?! in system)/i, 'ulimit -n raises the limit'],
  ['E_NO_SPACE', /file too large/i, 'Raise ulimit -f, or choose a file system that takes larger files'],
];

/** Where it happened, as far as the message does not say so itself. */
function placeText(error: MapramError): string {
  const { message, field } = error;
  const { path, offset } = placeOf(error);
  const parts = [];
  if (path !== undefined && !message.includes(path)) parts.push(`file ${path}`);
  if (offset !== undefined && !message.includes(`offset ${offset}`)) {
    parts.push(`offset ${offset} (0x${offset.toString(16)})`);
  }
  if (field !== undefined && !message.includes(field)) parts.push(`field ${field}`);
  return parts.join(', ');
}
