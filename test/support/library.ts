import { type ChildProcess, spawn } from 'node:child_process';
import type { Cleanup } from './cleanup.ts';
import { ROOT } from './paths.ts';

/** Runs a program that uses the built library (`import ... from 'mapram'`) in a process of its own. */
export function startProgram(cleanup: Cleanup, text: string, ...words: string[]): ChildProcess {
  const command = ['--input-type=module', '--eval', text, '--', ...words];
  const child = spawn(process.execPath, command, { cwd: ROOT, stdio: ['pipe', 'pipe', 'inherit'] });
  cleanup.add(() => void child.kill('SIGKILL'));
  return child;
}

/** What the program prints next. */
export async function printed(child: ChildProcess): Promise<string> {
  return String(await new Promise((resolve) => child.stdout?.once('data', resolve))).trim();
}
