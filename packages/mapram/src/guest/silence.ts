import { resolve } from 'node:path';
import { readIfThere, requireOwnProc } from './proc.ts';

// Why a QEMU does not answer, as far as this host tells. None of it is an error of its own: where nothing is known, nothing is said.

/** Why the process cannot answer, in one sentence; undefined if nothing keeps it. */
export async function whyStandstill(pid: number | undefined): Promise<string | undefined> {
  if (pid === undefined) return undefined;
  try {
    await requireOwnProc();
    const state = /^State:\s+(\S)/m.exec(await readIfThere(`/proc/${pid}/status`))?.[1];
    if (state === 'T') return `process ${pid} is stopped by a signal (kill -CONT ${pid} lets it go on)`;
    if (state === 't') return `process ${pid} is stopped by a debugger`;
    return (await isFrozen(pid)) ? `process ${pid} is frozen with its cgroup` : undefined;
  } catch {
    return undefined;
  }
}

/** Whether the process's cgroup is frozen, as by `docker pause`: in version 2 of cgroups, wherever it is mounted, or in version 1. */
async function isFrozen(pid: number): Promise<boolean> {
  const groups = await readIfThere(`/proc/${pid}/cgroup`);
  const group = /^0::(.*)$/m.exec(groups)?.[1];
  const oldGroup = /^\d+:freezer:(.*)$/m.exec(groups)?.[1];
  const files = [
    `/sys/fs/cgroup${group}/cgroup.events`,
    `/sys/fs/cgroup/unified${group}/cgroup.events`,
    `/sys/fs/cgroup/freezer${oldGroup}/freezer.state`,
  ];
  const texts = await Promise.all(files.map(readIfThere));
  return texts.some((text) => /^(frozen 1|FROZEN)$/m.test(text));
}

/** Why no greeting comes from the QMP socket that goes by `name`, in one sentence. */
export async function whyNoGreeting(name: string, pid: number | undefined): Promise<string> {
  const standstill = await whyStandstill(pid);
  if (standstill !== undefined) return `QEMU does not get to it: ${standstill}`;
  const { isKnown, accepted, waiting } = await countConnections(name);
  const busy = 'QEMU serves one client a socket: another client is connected';
  if (!isKnown) return `${busy}, or QEMU is busy or frozen`;
  if (waiting === 0)
    return 'the connection was taken, but what took it does not greet: it is no QMP socket, or hangs';
  return accepted > 0
    ? busy
    : 'QEMU does not take the connection: no other client is there, so it is busy or hangs';
}

/** Columns of /proc/net/unix: flags, type, state, inode, and the name behind which anything may come. */
const ROW = /^\S+ \S+ \S+ (\S+) \S+ (\S+) +\S+ (.+)$/;
const LISTENS = '00010000';
/** States of a connection: in the hands of the server, or still in its queue. */
const ACCEPTED = '03';
const WAITING = '02';

/** The connections to the listening socket `name`, as far as it is known here under that name. */
async function countConnections(
  name: string,
): Promise<{ isKnown: boolean; accepted: number; waiting: number }> {
  const text = await readIfThere('/proc/net/unix').catch(() => '');
  const names = [name, resolve(name)];
  const rows = text
    .split('\n')
    .map((line) => ROW.exec(line) ?? [])
    .filter(([, , , path]) => path !== undefined && names.includes(path));
  const count = (wanted: string): number =>
    rows.filter(([, flags, state]) => flags !== LISTENS && state === wanted).length;
  return {
    isKnown: rows.some(([, flags]) => flags === LISTENS),
    accepted: count(ACCEPTED),
    waiting: count(WAITING),
  };
}
