import { type Check, Checklist } from './doctor/check.ts';
import { checkDirectory } from './doctor/directory.ts';
import { checkGuest } from './doctor/guest.ts';
import { checkHost } from './doctor/host.ts';
import { MapramError } from './errors.ts';
import { checkPath } from './options.ts';

export type { Check } from './doctor/check.ts';

/** Options of {@link doctor}. */
export interface DoctorOptions {
  /** Directory that images are to be written to; default: the current one. */
  dir?: string | undefined;
  /** QMP socket of a guest to examine; default: none is. */
  qmp?: string | undefined;
  /** That guest's process; default: found through QMP. */
  pid?: number | undefined;
  /** Ends the examination. */
  signal?: AbortSignal | undefined;
}

/** Everything that {@link doctor} looked at. */
export interface DoctorReport {
  /** The checks in the order in which a save would meet them. */
  checks: Check[];
}

/**
 * Looks at everything that a save needs. Changes nothing in the guest.
 *
 * @throws {MapramError} E_USAGE for a process without a socket; or the signal's reason. Everything else is a check's matter.
 */
export async function doctor(options: DoctorOptions = {}): Promise<DoctorReport> {
  const { dir = '.', qmp, pid, signal = new AbortController().signal } = options;
  checkPath(dir, 'The directory is', 'dir');
  if (pid !== undefined && qmp === undefined) {
    throw new MapramError('E_USAGE', 'A process is examined only together with its QMP socket', {
      field: 'pid',
    });
  }
  const host = new Checklist('host', signal);
  const guest = new Checklist('guest', signal);
  const hasEngine = await checkHost(host);
  await checkDirectory(host, dir, hasEngine);
  if (qmp !== undefined) await checkGuest(guest, { qmp, pid }, dir);
  return { checks: [...host.checks, ...guest.checks] };
}
