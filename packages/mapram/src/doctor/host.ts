import { accessSync, constants, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { addon } from '../addon.ts';
import type { MapramError } from '../errors.ts';
import { autoEngine, engineNames, hostProblem, probeEngine } from '../native.ts';
import { DEFAULT_LOAD } from '../options.ts';
import { type Check, type Finding, failed, messageOf, ok, warn } from './check.ts';
import { judgeKernel, judgeLockedMemory, judgePtrace } from './judge.ts';
import { hostKvm } from './kvm.ts';

/** Bits of capabilities in /proc/self/status (include/uapi/linux/capability.h). */
const CAP_IPC_LOCK = 14;
const CAP_SYS_PTRACE = 19;

/** Whether the native addon loads: without it only part of what follows can be said. */
export function checkAddon(): Check {
  const common = { name: 'addon', area: 'host' } as const;
  try {
    addon();
    return { ...common, ...ok('the native addon is loaded') };
  } catch (error) {
    return {
      ...common,
      ...failed('', error, 'nothing can be saved or restored here without it; the reason says what to do'),
    };
  }
}

/** What the host offers to any guest and any directory. The engines are the addon's. */
export async function checkHost(hasAddon: boolean): Promise<Check[]> {
  const capabilities = effectiveCapabilities();
  const findings: [name: string, finding: Finding][] = [
    ['kernel', judgeKernel(release())],
    ...(hasAddon ? [pageSize(), ...(await checkEngines())] : []),
    ['locked-memory', judgeLockedMemory(readOr('/proc/self/limits', ''), hasBit(capabilities, CAP_IPC_LOCK))],
    [
      'process-memory',
      judgePtrace(readOr('/proc/sys/kernel/yama/ptrace_scope', '0'), hasBit(capabilities, CAP_SYS_PTRACE)),
    ],
    ['pagemap', ownPagemap()],
    ['kvm', hostKvm()],
  ];
  return findings.map(([name, finding]) => ({ name, area: 'host', ...finding }));
}

function pageSize(): [name: string, finding: Finding] {
  const problem = hostProblem();
  const finding =
    problem === undefined
      ? ok("the host's pages are of 4 KiB")
      : failed('', problem, 'boot a kernel with pages of 4 KiB');
  return ['page-size', finding];
}

async function checkEngines(): Promise<[name: string, finding: Finding][]> {
  const named = await Promise.all(engineNames().map(probedEngine));
  return [...named, ['engine-auto', await chosenEngine()]];
}

async function probedEngine(name: string): Promise<[name: string, finding: Finding]> {
  const error = await probeEngine(name, DEFAULT_LOAD);
  const finding = error === undefined ? ok(`I/O engine ${name} works`) : brokenEngine(name, error);
  return [`engine-${name}`, finding];
}

function brokenEngine(name: string, error: MapramError): Finding {
  return warn(
    `I/O engine ${name} does not work: ${messageOf(error)}`,
    'use another engine, or lift what forbids this one (sysctl kernel.io_uring_disabled, a seccomp profile)',
  );
}

async function chosenEngine(): Promise<Finding> {
  try {
    return ok(`--engine auto means ${await autoEngine(DEFAULT_LOAD)}`);
  } catch (error) {
    return failed('no I/O engine works: ', error, 'see the engines above');
  }
}

function ownPagemap(): Finding {
  try {
    accessSync('/proc/self/pagemap', constants.R_OK);
    return ok('/proc/PID/pagemap is there');
  } catch (error) {
    return failed(
      '/proc/self/pagemap cannot be read: ',
      error,
      'mount /proc, and use a kernel with CONFIG_PROC_PAGE_MONITOR',
    );
  }
}

function effectiveCapabilities(): bigint {
  const hex = /^CapEff:\s*([0-9a-f]+)$/m.exec(readOr('/proc/self/status', ''))?.[1] ?? '0';
  return BigInt(`0x${hex}`);
}

function hasBit(mask: bigint, bit: number): boolean {
  return ((mask >> BigInt(bit)) & 1n) === 1n;
}

/** The content of a file of the kernel's, or `fallback` where the kernel has none. */
function readOr(path: string, fallback: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return fallback;
  }
}
