import { randomUUID } from 'node:crypto';
import { closeSync } from 'node:fs';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { MapramError } from '../errors.ts';
import { createMemfd } from '../native.ts';
import { withFdSet } from './fdset.ts';
import type { GuestLink } from './link.ts';
import type { ExecuteOptions } from './monitor.ts';
import { queryCpus } from './queries.ts';

/**
 * The process that holds this guest's memory: the one whose threads are the guest's processors, verified.
 *
 * @throws {MapramError} E_GUEST_MISMATCH if the process that the caller names is another one; E_GUEST_UNSUPPORTED if QEMU's
 *   threads cannot be seen from here; E_PERMISSION if its files cannot be looked at.
 */
export async function findGuestProcess(link: GuestLink, options?: ExecuteOptions): Promise<number> {
  const { monitor, claimedPid } = link;
  const threads = (await queryCpus(monitor, options)).map((cpu) => cpu.threadId);
  const pid = claimedPid ?? (await processOfThread(threads[0]));
  const doubt = await findDoubt(link, pid, threads, options);
  if (doubt === undefined) return pid;
  // Numbers of another pid namespace lead to whoever has them in ours.
  throw claimedPid === undefined ? invisible(threads[0]) : mismatch(pid, doubt);
}

/**
 * Verifies once more that `pid` is this guest. To be called when the process has been pinned by a pidfd: what is true then was true
 * of the pinned process, for a number that had passed to another process in between would not pin that one.
 */
export async function confirmGuestProcess(
  link: GuestLink,
  pid: number,
  options?: ExecuteOptions,
): Promise<void> {
  const threads = (await queryCpus(link.monitor, options)).map((cpu) => cpu.threadId);
  const doubt = await findDoubt(link, pid, threads, options);
  if (doubt !== undefined) throw mismatch(pid, doubt);
}

/** Whether process `pid` has ended; one that nobody has waited for yet counts as ended. */
export async function hasEnded(pid: number): Promise<boolean> {
  const status = await readOrEmpty(`/proc/${pid}/status`);
  return status === '' || /^State:\s+[ZX]/m.test(status);
}

async function processOfThread(thread: number | undefined): Promise<number> {
  const status = thread === undefined ? '' : await readOrEmpty(`/proc/${thread}/status`);
  const group = /^Tgid:\s+(\d+)$/m.exec(status)?.[1];
  if (group === undefined) throw invisible(thread);
  return Number(group);
}

/** Why process `pid` is not the guest's, or undefined if it is. */
async function findDoubt(
  link: GuestLink,
  pid: number,
  threads: readonly number[],
  options: ExecuteOptions | undefined,
): Promise<string | undefined> {
  const own = await threadsOf(pid);
  const stranger = threads.find((thread) => !own.has(thread));
  if (stranger !== undefined) return `thread ${stranger} of the guest is not one of its threads`;
  if (threads.length === 0) return 'the guest has no processor to know it by';
  // Thread numbers of another pid namespace can coincide with ours; a descriptor in its hands cannot.
  if (link.scratchFile !== undefined || (await holdsOurMemfd(link, pid, options))) return undefined;
  return 'what is sent to the guest does not arrive there';
}

/** The process's threads by the numbers that they have in their own, innermost, pid namespace. */
async function threadsOf(pid: number): Promise<Set<number>> {
  const tasks = await readdir(`/proc/${pid}/task`).catch(() => []);
  const statuses = await Promise.all(tasks.map((task) => readOrEmpty(`/proc/${pid}/task/${task}/status`)));
  return new Set(statuses.map((status) => Number(/^NSpid:.*?(\d+)$/m.exec(status)?.[1])));
}

/** Sends QEMU a memfd with a name that nothing else has, and looks whether the process has got it. */
async function holdsOurMemfd(
  link: GuestLink,
  pid: number,
  options: ExecuteOptions | undefined,
): Promise<boolean> {
  const name = `mapram-${randomUUID()}`;
  const memfd = createMemfd(name);
  try {
    return await withFdSet(link.monitor, [memfd], () => holdsFile(pid, `/memfd:${name}`), options);
  } finally {
    closeSync(memfd);
  }
}

async function holdsFile(pid: number, name: string): Promise<boolean> {
  const directory = `/proc/${pid}/fd`;
  const fds = await readdir(directory).catch(async (cause: unknown) => {
    if (await hasEnded(pid))
      throw new MapramError('E_GUEST_GONE', `QEMU's process ${pid} has ended`, { cause });
    throw new MapramError(
      'E_PERMISSION',
      `The files of QEMU's process ${pid} may not be looked at by this user`,
      {
        path: directory,
        cause,
      },
    );
  });
  const links = await Promise.all(fds.map((fd) => readlink(`${directory}/${fd}`).catch(() => '')));
  return links.some((target) => target.startsWith(name));
}

function invisible(thread: number | undefined): MapramError {
  return new MapramError(
    'E_GUEST_UNSUPPORTED',
    `QEMU's thread ${thread} is not visible here, for QEMU runs in another pid namespace: name its process by --pid`,
    { field: 'pid' },
  );
}

function mismatch(pid: number, reason: string): MapramError {
  return new MapramError('E_GUEST_MISMATCH', `Process ${pid} is not this guest's QEMU: ${reason}`, {
    field: 'pid',
  });
}

async function readOrEmpty(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}
