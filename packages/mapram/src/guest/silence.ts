import { resolve } from 'node:path';
import { MapramError } from '../errors.ts';
import { within } from '../within.ts';
import { COMMAND_TIMEOUT_MS, type ExecuteOptions } from './monitor.ts';
import { readIfThere, requireOwnProc } from './proc.ts';

// Why a QEMU does not answer, as far as this host tells. None of it is an error of its own: where nothing is known, nothing is said.

/** A QEMU that has not answered for so long is told of, long before it is given up. */
const SILENCE_MS = 10_000;

/** Told, in one sentence, that QEMU keeps a command waiting; and undefined when its answer has come after all. */
export type Notice = (text: string | undefined) => void;

/** A command that waits for its answer. */
export interface Waiting extends ExecuteOptions {
  command: string;
  /** QEMU's process, where it is known. */
  pid?: number | undefined;
  /** The socket that the command went to. */
  path?: string;
  /** Told after a while that the answer has not come. */
  notice: Notice;
  /** Silence in milliseconds after which that is told; default 10000. */
  silenceMs?: number | undefined;
}

/**
 * The answer to a command, as soon as it comes.
 *
 * @throws {MapramError} E_QMP if it does not come in time; or the signal's reason.
 */
export async function answered<T>(answer: Promise<T>, waiting: Waiting): Promise<T> {
  const { command, pid = 0, path, notice, mayTakeLong = false } = waiting;
  const { timeoutMs = COMMAND_TIMEOUT_MS, silenceMs = SILENCE_MS, signal } = waiting;
  let isTold = false;
  let isOver = false;
  const tell = async (): Promise<void> => {
    const reason = await whyStandstill(pid);
    if (isOver || isTold || (mayTakeLong && reason === '')) return;
    isTold = true;
    notice(`QEMU has not answered the QMP command ${command} for ${silenceMs / 1000} s${reason}`);
  };
  const late = async (): Promise<MapramError> => {
    const message = `QEMU did not answer the QMP command ${command} within ${timeoutMs / 1000} s`;
    return new MapramError('E_QMP', `${message}${await whyStandstill(pid)}`, { path });
  };
  const timer = setInterval(() => void tell(), silenceMs);
  try {
    return await within(answer, { timeoutMs, late, signal });
  } finally {
    isOver = true;
    clearInterval(timer);
    if (isTold) notice(undefined);
  }
}

/** The end of a sentence: why the process cannot answer, behind a colon; empty if nothing keeps it. */
export async function whyStandstill(pid: number): Promise<string> {
  try {
    await requireOwnProc();
    const state = /^State:\s+(\S)/m.exec(await readIfThere(`/proc/${pid}/status`))?.[1];
    if (state === 'T') return `: process ${pid} is stopped by a signal (kill -CONT ${pid} lets it go on)`;
    if (state === 't') return `: process ${pid} is stopped by a debugger`;
    return (await isFrozen(pid)) ? `: process ${pid} is frozen with its cgroup` : '';
  } catch {
    return '';
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
export async function whyNoGreeting(name: string, pid: number): Promise<string> {
  const standstill = await whyStandstill(pid);
  if (standstill !== '') return `QEMU does not get to it${standstill}`;
  const connections = await connectionsTo(name);
  const busy = 'QEMU serves one client a socket: another client is connected';
  if (connections === undefined) return `${busy}, or QEMU is busy or frozen`;
  if (!connections.includes(WAITING))
    return 'The connection was taken, but what took it does not greet: it is no QMP socket, or hangs';
  return connections.includes(ACCEPTED)
    ? busy
    : 'QEMU does not take the connection: no other client is there, so it is busy or hangs';
}

/** Columns of /proc/net/unix: flags, type, state, inode, and the name behind which anything may come. */
const ROW = /^\S+ \S+ \S+ (\S+) \S+ (\S+) +\S+ (.+)$/gm;
const LISTENS = '00010000';
/** States of a connection: in the hands of the server, or still in its queue. */
const ACCEPTED = '03';
const WAITING = '02';

/** The states of the connections to the listening socket `name`; undefined where none is known under that name here. */
async function connectionsTo(name: string): Promise<unknown[] | undefined> {
  const text = await readIfThere('/proc/net/unix').catch(() => '');
  const names = [name, resolve(name)];
  const rows = [...text.matchAll(ROW)].filter(([, , , path = '']) => names.includes(path));
  const connections = rows.filter(([, flags]) => flags !== LISTENS);
  return connections.length < rows.length ? connections.map(([, , state]) => state) : undefined;
}
