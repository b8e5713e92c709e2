import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { interruption } from './interruption.ts';

/** Linux tells the CPU time of a process in hundredths of a second (USER_HZ), whatever the kernel counts in. */
const TICKS_PER_SECOND = 100;

/** CPU seconds, user and system, that a process and its threads have used, ended threads included. */
export function processCpuSeconds(pid: number): number {
  // The name in parentheses may hold spaces; what follows it is fields 3 and on of proc_pid_stat(5).
  const fields = readFileSync(`/proc/${pid}/stat`, 'latin1')
    .replace(/^.*\) /, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/**
 * Nanoseconds of CPU that each kernel thread has used, by its id: writeback, completion of direct I/O and loop devices work
 * there, in nobody's process. Interrupts are in no thread and are not seen.
 */
export function kernelThreadTimes(): Map<number, number> {
  const times = new Map<number, number>();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const parent = readFileSync(`/proc/${name}/stat`, 'latin1')
        .replace(/^.*\) /, '')
        .split(' ')[1];
      // Kernel threads are children of kthreadd, whose id is always 2.
      if (parent === '2')
        times.set(Number(name), Number(readFileSync(`/proc/${name}/schedstat`, 'latin1').split(' ')[0]));
    } catch {
      // It ended between the two reads.
    }
  }
  return times;
}

/** CPU seconds of kernel threads since `before`; those of threads that ended meanwhile are lost. */
export function kernelCpuSecondsSince(before: Map<number, number>): number {
  let nanoseconds = 0;
  for (const [pid, time] of kernelThreadTimes()) nanoseconds += Math.max(0, time - (before.get(pid) ?? 0));
  return nanoseconds / 1e9;
}

/** A command that ran to its end. */
export interface Finished {
  status: number | null;
  stdout: string;
  stderr: string;
  milliseconds: number;
  /** User and system time of the command and of all its children that it waited for. */
  cpuSeconds: number;
}

/** Runs a command to its end and tells its CPU time to the millisecond: Node has no wait4(2), but bash's `time` does. */
export function runTimed(command: string[]): Promise<Finished> {
  interruption.throwIfAborted();
  const began = performance.now();
  const child = spawn('bash', ['-c', `TIMEFORMAT='%3U %3S'; time "$@"`, 'bash', ...command], {
    stdio: ['ignore', 'pipe', 'pipe'],
    // On machines behind a proxy this makes every start of Node read a file of certificates, for 0.05 CPU-seconds.
    env: { ...process.env, NODE_EXTRA_CA_CERTS: undefined },
    // A process group of its own, so that a signal ends bash and the command together.
    detached: true,
  });
  const kill = () => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGTERM');
    } catch {
      // It ended by itself a moment ago.
    }
  };
  interruption.addEventListener('abort', kill, { once: true });
  return new Promise((resolve, reject) => {
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.once('error', reject);
    child.once('close', (status) => {
      interruption.removeEventListener('abort', kill);
      const milliseconds = performance.now() - began;
      const times = /(\d+\.\d{3}) (\d+\.\d{3})\n$/.exec(stderr);
      if (times === null) return reject(new Error(`bash told no times of ${command.join(' ')}:\n${stderr}`));
      resolve({
        status,
        stdout,
        stderr: stderr.slice(0, times.index),
        milliseconds,
        cpuSeconds: Number(times[1]) + Number(times[2]),
      });
    });
  });
}
