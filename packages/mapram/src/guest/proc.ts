import { readFile } from 'node:fs/promises';
import { asMapramError, MapramError } from '../errors.ts';

/** The content of a file of /proc, or an empty text if what it is about is not there. @throws {MapramError} */
export async function readIfThere(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (isAbsence(error)) return '';
    throw asMapramError(error);
  }
}

/** Whether an error of Node's says that a process or one of its threads is not there. Nothing else says so. */
export function isAbsence(error: unknown): boolean {
  return error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ESRCH');
}

/**
 * Process numbers of a /proc that was mounted in another pid namespace mean other processes to system calls, or none.
 *
 * @throws {MapramError} E_HOST_UNSUPPORTED if the /proc that is mounted here is no use.
 */
export async function requireOwnProc(): Promise<void> {
  // The process's numbers in the namespaces from that of the mount down to its own (proc(5)).
  const numbers = /^NSpid:(.*)$/m
    .exec(await readIfThere('/proc/self/status'))?.[1]
    ?.trim()
    .split(/\s+/);
  if (numbers?.length === 1) return;
  const message =
    '/proc is of another pid namespace than mapram, so that no process can be told by it: mount one here (mount -t proc proc /proc, or unshare --mount-proc), or run mapram in that namespace';
  throw new MapramError('E_HOST_UNSUPPORTED', message, { path: '/proc' });
}
