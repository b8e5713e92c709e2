import { readdir, readFile } from 'node:fs/promises';
import { MapramError } from '../errors.ts';
import type { GuestLink } from './link.ts';
import type { ExecuteOptions } from './monitor.ts';
import { queryCpus, queryStatus } from './queries.ts';

/**
 * The process that holds this guest's memory: the one whose threads are the guest's processors, verified.
 *
 * @throws {MapramError} E_GUEST_MISMATCH if the process that the caller names is another one; E_GUEST_UNSUPPORTED if QEMU's
 *   threads cannot be seen from here; E_PERMISSION if its files cannot be looked at; E_GUEST_GONE if QEMU has ended.
 */
export async function findGuestProcess(link: GuestLink, options?: ExecuteOptions): Promise<number> {
  const { monitor, claimedPid } = link;
  const threads = (await queryCpus(monitor, options)).map((cpu) => cpu.threadId);
  const pid = claimedPid ?? (await processOfThread(threads[0]));
  if (pid === undefined) throw await unlessGone(link, invisible(threads[0]), options);
  const doubt = await findDoubt(link, pid, threads, options);
  if (doubt === undefined) return pid;
  // Numbers of another pid namespace lead to whoever has them in ours.
  const error = claimedPid === undefined ? invisible(threads[0]) : mismatch(pid, doubt);
  throw await unlessGone(link, error, options);
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
  if (doubt !== undefined) throw await unlessGone(link, mismatch(pid, doubt), options);
}

/**
 * The error, if QEMU still answers: threads that cannot be found may be those of a QEMU that ended since it named them.
 *
 * @throws {MapramError} E_GUEST_GONE
 */
async function unlessGone(
  { monitor }: GuestLink,
  error: MapramError,
  options: ExecuteOptions | undefined,
): Promise<MapramError> {
  await queryStatus(monitor, options);
  return error;
}

/** The process that a thread belongs to; undefined if there is no such thread here. */
async function processOfThread(thread: number | undefined): Promise<number | undefined> {
  const status = thread === undefined ? '' : await readOrEmpty(`/proc/${thread}/status`);
  const group = /^Tgid:\s+(\d+)$/m.exec(status)?.[1];
  return group === undefined ? undefined : Number(group);
}

/** Why process `pid` is not the guest's, or undefined if it is. */
async function findDoubt(
  link: GuestLink,
  pid: number,
  threads: readonly number[],
  options: ExecuteOptions | undefined,
): Promise<string | undefined> {
  // We hold whatever we send to QEMU, so what is told by that below would hold for ourselves.
  if (pid === process.pid) return 'it is this very process';
  const own = await threadsOf(pid);
  if (own.size === 0) return 'there is no such process';
  const stranger = threads.find((thread) => !own.has(thread));
  if (stranger !== undefined) return `thread ${stranger} of the guest is not one of its threads`;
  if (threads.length === 0) return 'the guest has no processor to know it by';
  // Thread numbers of another pid namespace can coincide with ours; a descriptor in its hands cannot.
  if (await link.handover.reaches(pid, options)) return undefined;
  return 'what is sent to the guest does not arrive there';
}

/** The process's threads by the numbers that they have in their own, innermost, pid namespace. */
async function threadsOf(pid: number): Promise<Set<number>> {
  const tasks = await readdir(`/proc/${pid}/task`).catch(() => []);
  const statuses = await Promise.all(tasks.map((task) => readOrEmpty(`/proc/${pid}/task/${task}/status`)));
  return new Set(statuses.map((status) => Number(/^NSpid:.*?(\d+)$/m.exec(status)?.[1])));
}

function invisible(thread: number | undefined): MapramError {
  return new MapramError(
    'E_GUEST_UNSUPPORTED',
    `QEMU's thread ${thread} is not visible here, for QEMU runs in another pid namespace: name its process by --pid, or by the monitor's pid`,
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
