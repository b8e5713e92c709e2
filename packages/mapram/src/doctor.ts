import type { Check } from './doctor/check.ts';
import { checkDirectory } from './doctor/directory.ts';
import { checkGuest } from './doctor/guest.ts';
import { checkAddon, checkHost } from './doctor/host.ts';
import { MapramError } from './errors.ts';
import { pathFault } from './file-name.ts';

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
  const fault = pathFault(dir);
  if (fault !== undefined) {
    throw new MapramError('E_USAGE', `The directory is not right: ${fault}`, { field: 'dir' });
  }
  if (pid !== undefined && qmp === undefined) {
    throw new MapramError('E_USAGE', 'A process is examined only together with its QMP socket', {
      field: 'pid',
    });
  }
  const addon = checkAddon();
  const hasAddon = addon.status === 'ok';
  const checks = [addon, ...(await checkHost(hasAddon)), ...(await checkDirectory(dir, hasAddon))];
  if (qmp !== undefined) checks.push(...(await checkGuest({ qmp, pid }, dir, signal)));
  return { checks };
}
