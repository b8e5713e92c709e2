import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { onTestFinished } from 'vitest';
import type { Monitor } from './monitor.ts';
import { QmpClient } from './qmp.ts';

/** A real QEMU of a few MiB with two QMP sockets; killed when the test ends. */
export interface SmallQemu {
  child: ChildProcess;
  pid: number;
  /** The socket that the code under test gets. */
  socket: string;
  /** Another one, for a second client. */
  otherSocket: string;
  /** A directory on a disk, removed when the test ends. */
  directory: string;
}

const NAMES = ['first.sock', 'second.sock'];

/** Starts a QEMU; `extra` are further options. */
export function startQemu(...extra: string[]): Promise<SmallQemu> {
  return startQemuThrough([], ...extra);
}

/** Starts a QEMU with words before its name; `pid` is the process of the first of them. */
export async function startQemuThrough(prefix: string[], ...extra: string[]): Promise<SmallQemu> {
  const directory = mkdtempSync('/var/tmp/mapram-unit-');
  const [socket = '', otherSocket = ''] = NAMES.map((name) => join(directory, name));
  const sockets = [socket, otherSocket].flatMap((path) => ['-qmp', `unix:${path},server=on,wait=off`]);
  const machine = ['-machine', 'q35', '-nodefaults', '-display', 'none', '-m', '16'];
  const [command = '', ...words] = [...prefix, 'qemu-system-x86_64', ...machine, ...sockets, ...extra];
  const child = spawn(command, words, { stdio: 'ignore' });
  onTestFinished(async () => {
    const ended = child.exitCode ?? child.signalCode;
    const exit = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    if (ended === null) await exit;
    rmSync(directory, { recursive: true, force: true });
  });
  while (!(await isListening(otherSocket))) {
    if (child.exitCode !== null) throw new Error(`QEMU ended at once with ${child.exitCode}`);
    await delay(5);
  }
  return { child, pid: child.pid as number, socket, otherSocket, directory };
}

/** A socket's file is there a moment before anyone listens on it. */
async function isListening(path: string): Promise<boolean> {
  const client = await QmpClient.connect(path).catch(() => undefined);
  client?.close();
  return client !== undefined;
}

/** Runs commands through the second socket and returns the last one's answer. */
export async function tell(
  qemu: SmallQemu,
  ...commands: [string, Record<string, unknown>?][]
): Promise<unknown> {
  const client = await QmpClient.connect(qemu.otherSocket);
  try {
    let answer: unknown;
    for (const [command, args] of commands) answer = await client.execute(command, args);
    return answer;
  } finally {
    client.close();
  }
}

/** The state of the guest as the second socket says. */
export async function stateOf(qemu: SmallQemu): Promise<string> {
  return ((await tell(qemu, ['query-status'])) as { status: string }).status;
}

/** A connection of the test's own to QEMU, closed when the test has finished. */
export async function connect(qemu: SmallQemu): Promise<QmpClient> {
  const client = await QmpClient.connect(qemu.socket);
  onTestFinished(() => client.close());
  return client;
}

/** A monitor that does something when a command is given, before QEMU gets it. */
export function interpose(monitor: Monitor, at: string, act: () => unknown): Monitor {
  return {
    events: monitor.events,
    execute: async (command, args, options) => {
      if (command === at) await act();
      return monitor.execute(command, args, options);
    },
  };
}
