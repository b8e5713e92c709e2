import { readdir } from 'node:fs/promises';
import { asMapramError, MapramError } from '../errors.ts';
import { ProcessHandle } from '../native.ts';

/** Whether one of the files that process `pid` has open is what `isWanted` looks for; it gets a path to look at each by. */
export async function holdsFile(pid: number, isWanted: (path: string) => Promise<boolean>): Promise<boolean> {
  const directory = `/proc/${pid}/fd`;
  const fds = await readdir(directory).catch((cause: unknown) => {
    throw refusal(pid, directory, cause);
  });
  const looks = await Promise.all(fds.map((fd) => isWanted(`${directory}/${fd}`).catch(asMapramError)));
  if (looks.includes(true)) return true;
  // The directory shows more users its names than may look behind them: root without CAP_SYS_PTRACE, say.
  const refused = looks.find((look) => look instanceof MapramError && look.code === 'E_PERMISSION');
  if (refused !== undefined) throw refusal(pid, directory, refused);
  return false;
}

function refusal(pid: number, directory: string, cause: unknown): MapramError {
  const error = asMapramError(cause);
  // The files of a process that has ended are not there, or closed to others than root until it was waited for.
  if (hasEnded(pid)) return new MapramError('E_GUEST_GONE', `QEMU's process ${pid} has ended`, { cause });
  if (error.code !== 'E_PERMISSION') return error;
  const message = `The files of QEMU's process ${pid} may not be looked at by this user: run mapram as root, with CAP_SYS_PTRACE, or as QEMU's user`;
  return new MapramError('E_PERMISSION', message, { path: directory, cause });
}

function hasEnded(pid: number): boolean {
  try {
    const process = ProcessHandle.open(pid);
    const answer = process.hasEnded();
    process.close();
    return answer;
  } catch (error) {
    return error instanceof MapramError && error.code === 'E_GUEST_GONE';
  }
}
