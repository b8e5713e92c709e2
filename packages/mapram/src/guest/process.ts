import { readdir } from 'node:fs/promises';
import { MapramError } from '../errors.ts';
import type { GuestLink } from './link.ts';
import { ifThere, readIfThere, requireOwnProc } from './proc.ts';
import { NO_PROCESSORS, queryCpus, queryStatus } from './queries.ts';

/**
 * The process that holds this guest's memory: the one whose threads are the guest's processors, verified.
 *
 * @throws {MapramError} E_GUEST_MISMATCH if the process that the caller names is another one; E_GUEST_UNSUPPORTED if QEMU's
 *   threads cannot be seen from here, or if it has no processors; E_HOST_UNSUPPORTED if /proc is of no use; E_PERMISSION if its
 *   files cannot be looked at; E_GUEST_GONE if QEMU has ended.
 */
export async function findGuestProcess(link: GuestLink): Promise<number> {
  const { claimedPid } = link;
  await requireOwnProc();
  if (claimedPid !== undefined) {
    await confirmGuestProcess(link, claimedPid);
    return claimedPid;
  }
  const threads = await threadsOfGuest(link);
  let refused: MapramError | undefined;
  for (const pid of await findCandidates(link, threads)) {
    try {
      if ((await findDoubt(link, pid, threads)) === undefined) return pid;
    } catch (error) {
      if (!isAboutProcess(error)) throw error;
      if (error.code === 'E_PERMISSION') refused ??= error;
    }
  }
  // A relay lets QEMU itself be far away; that descriptors arrive at all is asked by looking for one in our own hands.
  if (link.peerPid !== undefined) await link.handover.reaches(process.pid);
  throw await unlessGone(link, whyNotFound(link, threads, refused));
}

/**
 * Processes that may be the guest's: the one that listens on its socket, wherever it runs, and the one that has a thread of the
 * number that QEMU gives, which in another pid namespace is some other process's.
 */
async function findCandidates({ peerPid }: GuestLink, [thread]: readonly number[]): Promise<Set<number>> {
  const group = /^Tgid:\s+(\d+)$/m.exec(await readIfThere(`/proc/${thread}/status`))?.[1];
  const candidates = [peerPid, Number(group)];
  return new Set(candidates.filter((pid): pid is number => pid !== undefined && pid > 0));
}

/** Whether it is the look at a process that failed, rather than our means for it or QEMU. */
function isAboutProcess(error: unknown): error is MapramError {
  return error instanceof MapramError && (error.code === 'E_PERMISSION' || error.code === 'E_GUEST_GONE');
}

/** Of a process that may not be looked at we know only the thread's number, which is no proof where QEMU is out of sight. */
function whyNotFound(
  { peerPid }: GuestLink,
  [thread]: readonly number[],
  refused: MapramError | undefined,
): MapramError {
  const isOutOfSight = peerPid === 0;
  if (refused !== undefined && !isOutOfSight) return refused;
  const way = isOutOfSight ? 'run mapram in that namespace, or in one above it' : 'name its process';
  const message = `QEMU's thread ${thread} is not visible here, for QEMU runs in another pid namespace: ${way}`;
  return new MapramError('E_GUEST_UNSUPPORTED', message, { field: 'pid' });
}

/** The threads of the guest's processors, at least one. */
async function threadsOfGuest({ monitor, options }: GuestLink): Promise<number[]> {
  const cpus = await queryCpus(monitor, options);
  if (cpus.length > 0) return cpus.map((cpu) => cpu['thread-id']);
  throw new MapramError('E_GUEST_UNSUPPORTED', `This QEMU holds no guest: ${NO_PROCESSORS}`);
}

/**
 * Verifies once more that `pid` is this guest. To be called when the process has been pinned by a pidfd: what is true then was true
 * of the pinned process, for a number that had passed to another process in between would not pin that one.
 */
export async function confirmGuestProcess(link: GuestLink, pid: number): Promise<void> {
  const doubt = await findDoubt(link, pid, await threadsOfGuest(link));
  if (doubt === undefined) return;
  const message = `Process ${pid} is not this guest's QEMU: ${doubt}`;
  throw await unlessGone(link, new MapramError('E_GUEST_MISMATCH', message, { field: 'pid' }));
}

/**
 * The error, if QEMU still answers: threads that cannot be found may be those of a QEMU that ended since it named them.
 *
 * @throws {MapramError} E_GUEST_GONE
 */
async function unlessGone({ monitor, options }: GuestLink, error: MapramError): Promise<MapramError> {
  await queryStatus(monitor, options);
  return error;
}

/** Why process `pid` is not the guest's, or undefined if it is. */
async function findDoubt(
  link: GuestLink,
  pid: number,
  threads: readonly number[],
): Promise<string | undefined> {
  // We hold whatever we send to QEMU, so what is told by that below would hold for ourselves.
  if (pid === process.pid) return 'it is this very process';
  const own = await threadsOf(pid);
  if (own.size === 0) return 'there is no such process';
  const stranger = threads.find((thread) => !own.has(thread));
  if (stranger !== undefined) return `thread ${stranger} of the guest is not one of its threads`;
  // Thread numbers of another pid namespace can coincide with ours; a descriptor in its hands cannot.
  if (await link.handover.reaches(pid)) return undefined;
  return 'what is sent to the guest does not arrive there';
}

/** The process's threads by the numbers that they have in their own, innermost, pid namespace. */
async function threadsOf(pid: number): Promise<Set<number>> {
  const tasks = await ifThere(readdir(`/proc/${pid}/task`), []);
  // One after the other, for there may be more threads than this process has descriptors.
  const threads = new Set<number>();
  for (const task of tasks) {
    const status = await readIfThere(`/proc/${pid}/task/${task}/status`);
    threads.add(Number(/^NSpid:.*?(\d+)$/m.exec(status)?.[1]));
  }
  return threads;
}
