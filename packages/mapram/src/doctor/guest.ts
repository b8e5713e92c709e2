import * as v from 'valibot';
import { openGuestMemory } from '../guest/guest-memory.ts';
import { type GuestLink, openGuest, type QmpGuest } from '../guest/link.ts';
import { findSaveObstacles } from '../guest/preflight.ts';
import { findGuestProcess } from '../guest/process.ts';
import { ask, queryStatus } from '../guest/queries.ts';
import { queryRamBlocks, type RamBlock } from '../guest/ram-blocks.ts';
import { JobContext } from '../job.ts';
import { freeBytes, type GuestMemory } from '../native.ts';
import { spaceBound } from '../save/space.ts';
import { type Checklist, fail, messageOf, ok, warn } from './check.ts';
import { judgeSpace, judgeVersion } from './judge.ts';

const VersionSchema = v.object({
  qemu: v.object({ major: v.number(), minor: v.number(), micro: v.number() }),
});
const KvmSchema = v.object({ enabled: v.boolean() });

/**
 * What a save of this guest into `directory` would meet. Nothing of the guest is changed: it is asked, it is handed a descriptor
 * to tell its process by, and its memory is looked at from outside.
 */
export async function checkGuest(list: Checklist, guest: QmpGuest, directory: string): Promise<void> {
  const advice =
    'check the path, that QEMU is not frozen, and that no other client holds this socket: mapram takes one of its own';
  const link = await list.look('qmp', advice, async () => {
    const value = await openGuest(guest, list.signal);
    return { ...ok(`QEMU answers at ${guest.qmp}`), value };
  });
  if (link === undefined) return;
  try {
    await askQemu(list, link);
    await examineMemory(list, link, directory);
  } finally {
    link.close();
  }
}

async function askQemu(list: Checklist, link: GuestLink): Promise<void> {
  const { monitor } = link;
  const options = { signal: list.signal };
  const advice = 'see the log of QEMU';
  await list.look('qemu', 'use QEMU 9.1 or later', async () => {
    const { qemu } = await ask(monitor, VersionSchema, 'query-version', {}, options);
    return judgeVersion(qemu);
  });
  await list.look('accelerator', advice, async () => {
    const { enabled } = await ask(monitor, KvmSchema, 'query-kvm', {}, options);
    if (enabled) return ok('the guest runs under KVM');
    return ok('the guest runs without KVM: QEMU emulates its processors');
  });
  await list.look('state', advice, async () => {
    const { status } = await queryStatus(monitor, options);
    return ok(`the guest is ${status}`);
  });
  await list.look('savable', advice, async () => {
    const obstacles = await findSaveObstacles(link);
    if (obstacles.length === 0) return ok('QEMU has the commands that a save needs, and nothing blocks one');
    return fail(obstacles.join('; '), 'remove what stands in the way; docs/errors.md, E_GUEST_UNSUPPORTED');
  });
}

async function examineMemory(list: Checklist, link: GuestLink, directory: string): Promise<void> {
  const job = new JobContext(list.signal);
  const pid = await list.look(
    'process',
    'give mapram a socket of QEMU itself, no relay, and no --pid but that of QEMU',
    async () => {
      const value = await findGuestProcess(link);
      return { ...ok(`the guest is process ${value}`), value };
    },
  );
  const blocks = await list.look('ram-blocks', 'report this with the whole output', async () => {
    const value = await queryRamBlocks(link.monitor, job.commandOptions);
    return { ...ok(`${value.length} RAM blocks: ${value.map(({ name }) => name).join(', ')}`), value };
  });
  if (pid === undefined || blocks === undefined) return;
  const open = (writable: boolean): Promise<GuestMemory> =>
    openGuestMemory(link, pid, blocks, { writable }, job);
  const memory = await list.look('memory', 'see the cause', async () => {
    const value = await open(false);
    return { ...ok(`its memory can be read; ${describeKinds(value, blocks)}`), value };
  });
  if (memory === undefined) return;
  const space = list.look('space', 'make room, or name another directory by --dir', async () => {
    const needed = spaceBound(blocks, await memory.scan());
    return judgeSpace({ needed, free: await freeBytes(directory) });
  });
  await space.finally(() => memory.close());
  const refusal = await open(true).then((writable) => writable.close(), messageOf);
  job.signal.throwIfAborted();
  // A refusal to write is no obstacle to saving, so it must not fail the check.
  list.note(
    'fill',
    refusal === undefined
      ? ok('a QEMU started like this one can be restored by --method fill')
      : warn(`its memory cannot be written: ${refusal}`, 'restore by --method qemu'),
  );
}

/** The kinds of memory, each with the blocks that have it: `anonymous: pc.ram, pc.bios; shared-file: ram0`. */
function describeKinds(memory: GuestMemory, blocks: readonly RamBlock[]): string {
  const names = new Map<string, Set<string>>();
  for (const { kind, block } of memory.regions()) {
    const known = names.get(kind) ?? new Set<string>();
    names.set(kind, known.add(blocks[block]?.name ?? String(block)));
  }
  if (names.size === 1) return `all of it is ${[...names.keys()].join()}`;
  return [...names].map(([kind, found]) => `${kind}: ${[...found].join(', ')}`).join('; ');
}
