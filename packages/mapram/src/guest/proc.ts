import { readFile } from 'node:fs/promises';
import { asMapramError, MapramError } from '../errors.ts';

/** The content of a file of /proc, or an empty text if what it is about is not there. @throws {MapramError} */
export async function readIfThere(path: string): Promise<string> {
  return ifThere(readFile(path, 'utf8'), '');
}

/** What a look at /proc finds, or `nothing` if the process or thread that it is about is not there. @throws {MapramError} */
export async function ifThere<T>(look: Promise<T>, nothing: T): Promise<T> {
  return look.catch((error: NodeJS.ErrnoException) => {
    // Nothing else says so.
    if (error.code === 'ENOENT' || error.code === 'ESRCH') return nothing;
    throw asMapramError(error);
  });
}

/**
 * Process numbers of a /proc that was mounted in another pid namespace mean other processes to system calls, or none.
 *
 * @throws {MapramError} E_HOST_UNSUPPORTED if the /proc that is mounted here is no use.
 */
export async function requireOwnProc(): Promise<void> {
  // The process's numbers in the namespaces from that of the mount down to its own (proc(5)): one where these are the same.
  if (/^NSpid:[\t ]+\d+$/m.test(await readIfThere('/proc/self/status'))) return;
  const message =
    '/proc is of another pid namespace than mapram, so that no process can be told by it: mount one here (mount -t proc proc /proc, or unshare --mount-proc), or run mapram in that namespace';
  throw new MapramError('E_HOST_UNSUPPORTED', message, { path: '/proc' });
}
