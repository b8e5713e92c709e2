import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';

/** Takes every descriptor that this process may still open, until what it returns is called. */
export function takeDescriptors(): () => void {
  const limit = (words: string[]): void => {
    const { status } = spawnSync('prlimit', ['--pid', String(process.pid), ...words]);
    if (status !== 0) throw new Error('no prlimit');
  };
  const [, soft = ''] = /Max open files +(\d+)/.exec(readFileSync('/proc/self/limits', 'utf8')) ?? [];
  limit([`--nofile=${readdirSync('/proc/self/fd').length + 64}:`]);
  const taken: number[] = [];
  try {
    for (;;) taken.push(openSync('/dev/null', 'r'));
  } catch {
    // There are none left.
  }
  return () => {
    for (const fd of taken.splice(0)) closeSync(fd);
    limit([`--nofile=${soft}:`]);
  };
}
