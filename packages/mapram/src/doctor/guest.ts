import * as v from 'valibot';
import { EXIT_STATUS, MapramError } from '../errors.ts';
import { openGuestMemory } from '../guest/guest-memory.ts';
import { type GuestLink, openGuest, type QmpGuest } from '../guest/link.ts';
import { findSaveObstacles } from '../guest/preflight.ts';
import { findGuestProcess } from '../guest/process.ts';
import { ask, queryStatus } from '../guest/queries.ts';
import { queryRamBlocks, type RamBlock } from '../guest/ram-blocks.ts';
import { JobContext } from '../job.ts';
import { freeBytes, type GuestMemory } from '../native.ts';
import { spaceBound } from '../save/space.ts';
import { type Check, type Finding, fail, failed, messageOf, ok, warn } from './check.ts';
import { judgeSpace, judgeVersion } from './judge.ts';
import { guestAccelerator } from './kvm.ts';

const VersionSchema = v.object({
  qemu: v.object({ major: v.number(), minor: v.number(), micro: v.number() }),
  package: v.string(),
});

/** Adds the check `name`: what `describe` says of the work's result, or the failure. Undefined after a failure. */
type Step = <T>(
  name: string,
  advice: string,
  work: () => Promise<T>,
  describe: (value: T) => Finding,
) => Promise<T | undefined>;

/**
 * What a save of this guest into `directory` would meet. Nothing of the guest is changed: it is asked, it is handed a descriptor
 * to tell its process by, and its memory is looked at from outside.
 */
export async function checkGuest(guest: QmpGuest, directory: string, signal: AbortSignal): Promise<Check[]> {
  const checks: Check[] = [];
  const step: Step = async (name, advice, work, describe) => {
    try {
      const value = await work();
      checks.push({ name, area: 'guest', ...describe(value) });
      return value;
    } catch (error) {
      signal.throwIfAborted();
      checks.push({ name, area: areaOf(error), ...failed('', error, adviceFor(error) ?? advice) });
      return undefined;
    }
  };
  const link = await step(
    'qmp',
    'check the path, disconnect other clients, or give QEMU a QMP socket of its own for mapram',
    () => openGuest(guest, signal),
    () => ok(`QEMU answers at ${guest.qmp}`),
  );
  if (link === undefined) return checks;
  try {
    await askQemu(link, step, signal);
    await examineMemory(link, step, directory, signal);
    return checks;
  } finally {
    link.close();
  }
}

async function askQemu(link: GuestLink, step: Step, signal: AbortSignal): Promise<void> {
  const { monitor } = link;
  await step(
    'qemu',
    'use QEMU 9.1 or later',
    () => ask(monitor, VersionSchema, 'query-version', {}, { signal }),
    ({ qemu }) => judgeVersion(qemu),
  );
  await step(
    'accelerator',
    'see the log of QEMU',
    () => guestAccelerator(monitor, { signal }),
    (finding) => finding,
  );
  await step(
    'state',
    'see the log of QEMU',
    () => queryStatus(monitor, { signal }),
    ({ status }) => ok(`the guest is ${status}`),
  );
  await step(
    'savable',
    'see the log of QEMU',
    () => findSaveObstacles(link, { signal }),
    (obstacles) =>
      obstacles.length === 0
        ? ok('QEMU has the commands that a save needs, and nothing blocks one')
        : fail(obstacles.join('; '), 'remove what stands in the way; docs/errors.md, E_GUEST_UNSUPPORTED'),
  );
}

async function examineMemory(
  link: GuestLink,
  step: Step,
  directory: string,
  signal: AbortSignal,
): Promise<void> {
  const job = new JobContext(signal);
  const pid = await step(
    'process',
    'leave --pid out: mapram finds the process by itself',
    () => findGuestProcess(link, { signal }),
    (found) => ok(`the guest is process ${found}`),
  );
  const blocks = await step(
    'ram-blocks',
    'report this with the whole output',
    () => queryRamBlocks(link.monitor, { signal }),
    (found) => ok(`${found.length} RAM blocks: ${found.map(({ name }) => name).join(', ')}`),
  );
  if (pid === undefined || blocks === undefined) return;
  const memory = await step(
    'memory',
    'run mapram as root or as the user that runs QEMU',
    () => openGuestMemory(link, pid, blocks, { writable: false }, job),
    (opened) => ok(`its memory can be read; ${describeKinds(opened, blocks)}`),
  );
  if (memory === undefined) return;
  await step(
    'space',
    'make room, or name another directory by --dir',
    async () => ({ needed: spaceBound(blocks, await memory.scan()), free: await freeBytes(directory) }),
    judgeSpace,
  ).finally(() => memory.close());
  await step(
    'fill',
    'a guest like this can be restored by --method qemu',
    async () => {
      // A refusal to write is no obstacle to saving, so it must not fail the check.
      const refusal = await openGuestMemory(link, pid, blocks, { writable: true }, job).then(
        (writable) => writable.close(),
        (error: unknown) => messageOf(error),
      );
      signal.throwIfAborted();
      return refusal;
    },
    (refusal) =>
      refusal === undefined
        ? ok('a QEMU started like this one can be restored by --method fill')
        : warn(`its memory cannot be written: ${refusal}`, 'restore by --method qemu'),
  );
}

/** What to do about a failure whose code tells more than the check that met it. */
function adviceFor(error: unknown): string | undefined {
  const code = error instanceof MapramError ? error.code : undefined;
  if (code === 'E_PERMISSION') return 'run mapram as root or as the user that runs QEMU';
  if (code === 'E_GUEST_UNSUPPORTED' || code === 'E_HOST_UNSUPPORTED') return `docs/errors.md, ${code}`;
  return undefined;
}

/** The kinds of memory, each with the blocks that have it: `anonymous: pc.ram, pc.bios; shared-file: ram0`. */
function describeKinds(memory: GuestMemory, blocks: readonly RamBlock[]): string {
  const names = new Map<string, Set<string>>();
  for (const { kind, block } of memory.regions()) {
    const known = names.get(kind) ?? new Set<string>();
    names.set(kind, known.add(blocks[block]?.name ?? String(block)));
  }
  const [only, ...others] = names.keys();
  if (only !== undefined && others.length === 0) return `all of it is ${only}`;
  return [...names].map(([kind, found]) => `${kind}: ${[...found].join(', ')}`).join('; ');
}

/** A refusal by the kernel is the host's matter, everything else the guest's. */
function areaOf(error: unknown): Check['area'] {
  return error instanceof MapramError && EXIT_STATUS[error.code] === 4 ? 'host' : 'guest';
}
