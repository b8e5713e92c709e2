import { type ChildProcess, spawn } from 'node:child_process';
import { CLI } from './paths.ts';

/** What a finished run of the command line left. */
export interface CliResult {
  status: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  /** Wall time of the process. */
  milliseconds: number;
}

/** The failure object of `--json`. */
export interface CliError {
  code: string;
  message: string;
  path?: string;
  offset?: number;
  field?: string;
}

/** The one object that `--json` prints. */
export interface CliReport {
  schemaVersion: number;
  ok: boolean;
  error?: CliError;
  guestState?: string;
  image?: string;
  guestBytes?: number;
  dataBytes?: number;
  zeroPages?: number;
  pages?: number;
  durationMs?: number;
  pauseMs?: number;
  bytesPerSecond?: number;
  cpuSeconds?: number;
  channels?: number;
  queueDepth?: number;
  engine?: string;
  direct?: boolean;
  copiedBytes?: number;
  blocks?: { name: string; [key: string]: unknown }[];
  [key: string]: unknown;
}

/** How a run differs from a plain one. */
export interface CliOptions {
  /** Words before `node`, such as setpriv with its options. */
  prefix?: string[];
  env?: Record<string, string>;
  timeoutMs?: number;
}

/** A running command line. */
export interface CliRun {
  child: ChildProcess;
  done: Promise<CliResult>;
}

/** Starts the built command line. */
export function start(args: string[], options: CliOptions = {}): CliRun {
  const [command, ...rest] = [...(options.prefix ?? []), process.execPath, CLI, ...args];
  const began = performance.now();
  const child = spawn(command as string, rest, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...options.env },
  });
  const done = new Promise<CliResult>((resolve, reject) => {
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      reject(new Error(`mapram ${args.join(' ')} did not end\n${stdout}\n${stderr}`));
    }, options.timeoutMs ?? 180_000);
    child.once('error', reject);
    child.once('close', (status, signal) => {
      clearTimeout(timer);
      resolve({ status, signal, stdout, stderr, milliseconds: performance.now() - began });
    });
  });
  return { child, done };
}

/** Runs the built command line to its end. */
export function run(args: string[], options?: CliOptions): Promise<CliResult> {
  return start(args, options).done;
}

/** Reads the object that a run with `--json` printed; stdout must hold nothing else. */
export function report(result: CliResult): CliReport {
  try {
    return JSON.parse(result.stdout) as CliReport;
  } catch {
    throw new Error(`no JSON on stdout (status ${result.status}):\n${result.stdout}\n${result.stderr}`);
  }
}

/** Runs with `--json` and expects success. */
export async function succeed(args: string[], options?: CliOptions): Promise<CliReport> {
  const result = await run([...args, '--json'], options);
  if (result.status !== 0)
    throw new Error(`mapram ${args.join(' ')}: ${result.status}\n${result.stdout}\n${result.stderr}`);
  return report(result);
}

/** Runs with `--json` and expects a failure with this exit status and code. */
export async function failWith(
  status: number,
  code: string,
  args: string[],
  options?: CliOptions,
): Promise<CliReport> {
  const result = await run([...args, '--json'], options);
  const found = report(result);
  if (result.status !== status || found.ok || found.error?.code !== code)
    throw new Error(
      `expected ${status} ${code} of mapram ${args.join(' ')}, got ${result.status}\n${result.stdout}\n${result.stderr}`,
    );
  return found;
}
