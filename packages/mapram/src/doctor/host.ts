import { accessSync, closeSync, constants, openSync } from 'node:fs';
import { release } from 'node:os';
import { addon } from '../addon.ts';
import { ENGINES } from '../choices.ts';
import { readIfThere } from '../guest/proc.ts';
import { checkPageSize, chooseEngine } from '../native.ts';
import { DEFAULT_LOAD } from '../options.ts';
import { type Checklist, type Finding, fail, messageOf, ok, warn } from './check.ts';
import { judgeKernel, judgeLockedMemory, judgePtrace } from './judge.ts';

/** Bits of capabilities in /proc/self/status (include/uapi/linux/capability.h). */
const CAP_IPC_LOCK = 14n;
const CAP_SYS_PTRACE = 19n;

/**
 * What the host offers to any guest and any directory. The page size and the engines are known to the native addon.
 *
 * @returns whether that can be used here: without it only part of what follows can be said.
 */
export async function checkHost(list: Checklist): Promise<boolean> {
  const advice = 'nothing can be saved or restored here without it; the reason says what to do';
  await list.look('addon', advice, () => {
    addon();
    return ok('the native addon is loaded');
  });
  const isLoaded = !list.hasFailed;
  list.note('kernel', judgeKernel(release()));
  if (isLoaded) {
    await list.look('page-size', 'boot a kernel with pages of 4 KiB', () => {
      checkPageSize();
      return ok("the host's pages are of 4 KiB");
    });
  }
  const hasEngine = isLoaded && !list.hasFailed;
  if (hasEngine) {
    for (const name of ENGINES.slice(1)) list.note(`engine-${name}`, await tryEngine(name));
    await list.look(
      'engine-auto',
      'see the engines above',
      async () => ok(`--engine auto means ${await chooseEngine('auto', DEFAULT_LOAD)}`),
      'no I/O engine works: ',
    );
  }
  const limits = await readOrNothing('/proc/self/limits');
  list.note('locked-memory', judgeLockedMemory(limits, await hasCapability(CAP_IPC_LOCK)));
  // A kernel without Yama has no such file.
  const scope = await readOrNothing('/proc/sys/kernel/yama/ptrace_scope');
  list.note('process-memory', judgePtrace(scope, await hasCapability(CAP_SYS_PTRACE)));
  list.note('pagemap', tryPagemap());
  list.note('kvm', tryKvm());
  return hasEngine;
}

async function tryEngine(name: string): Promise<Finding> {
  try {
    await chooseEngine(name, DEFAULT_LOAD);
    return ok(`I/O engine ${name} works`);
  } catch (error) {
    return warn(
      `I/O engine ${name} does not work: ${messageOf(error)}`,
      'use another engine, or lift what forbids this one (sysctl kernel.io_uring_disabled, a seccomp profile)',
    );
  }
}

function tryPagemap(): Finding {
  try {
    accessSync('/proc/self/pagemap', constants.R_OK);
    return ok('/proc/PID/pagemap is there');
  } catch (error) {
    const message = `/proc/self/pagemap cannot be read: ${messageOf(error)}`;
    return fail(message, 'mount /proc, and use a kernel with CONFIG_PROC_PAGE_MONITOR');
  }
}

/** Whether guests could run under KVM here. Good to know, and nothing that a save needs: emulated guests are saved as well. */
function tryKvm(): Finding {
  try {
    closeSync(openSync('/dev/kvm', constants.O_RDWR));
    return ok('KVM is there: /dev/kvm can be opened');
  } catch (error) {
    return ok(`this user starts no guests under KVM (${messageOf(error)}); saves need none`);
  }
}

/** Whether this process has the capability in effect. */
async function hasCapability(bit: bigint): Promise<boolean> {
  const hex = /^CapEff:\s*([0-9a-f]+)$/m.exec(await readOrNothing('/proc/self/status'))?.[1] ?? '0';
  return ((BigInt(`0x${hex}`) >> bit) & 1n) === 1n;
}

/** What cannot be read says nothing, and ends no examination. */
function readOrNothing(path: string): Promise<string> {
  return readIfThere(path).catch(() => '');
}
