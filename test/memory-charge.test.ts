import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type MemoryCgroup, memoryCgroups, swapFile } from './support/cgroup.ts';
import { Cleanup } from './support/cleanup.ts';
import { succeed } from './support/cli.ts';
import { largeGuest, testCleanup } from './support/fixtures.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory, memoryDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';

// A guest's memory is charged to its own memory cgroup, whoever put it there: mapram's may be much smaller.

const MEBIBYTES = 256;
const cleanup = new Cleanup();
let image: string;

beforeAll(async () => {
  const source = await largeGuest(cleanup, MEBIBYTES);
  image = join(diskDirectory(cleanup), 'image');
  await succeed(['save', '--qmp', source.socket, '--then', 'quit', image]);
});
afterAll(() => cleanup.run());

const BACKENDS = [
  { name: 'private memory', backend: () => 'memory-backend-ram' },
  { name: 'a memfd', backend: () => 'memory-backend-memfd,share=on' },
  {
    name: 'a file on tmpfs',
    backend: (local: Cleanup) =>
      `memory-backend-file,share=on,mem-path=${join(memoryDirectory(local), 'ram')}`,
  },
];

describe.for(BACKENDS)('a restore into $name', ({ backend }) => {
  test.for([{ engine: 'io-uring' }, { engine: 'blocking' }])(
    'charges the guest for its memory, and fits a small cgroup ($engine)',
    async ({ engine }, context) => {
      const local = testCleanup();
      const make = memoryCgroups(local);
      if ('unavailable' in make) return context.skip(make.unavailable);
      const [own, guests] = ['own', 'guests'].map(make) as [MemoryCgroup, MemoryCgroup];
      own.limit(112 << 20);
      const memory = ['-object', `${backend(local)},id=ram0,size=${MEBIBYTES}M`];
      const options = { machine: 'q35', mebibytes: MEBIBYTES, memory, incoming: true, paused: true } as const;
      const qemu = await Qemu.start({ ...options, prefix: guests.prefix }, local);
      await qemu.qmp.waitForStatus('inmigrate');
      const before = { own: own.usage(), guests: guests.usage() };
      const line = ['restore', '--qmp', qemu.socket, '--then', 'pause', '--engine', engine, image];
      await succeed(line, { prefix: own.prefix });
      expect(guests.usage() - before.guests).toBeGreaterThan((MEBIBYTES - 8) << 20);
      expect(own.usage() - before.own).toBeLessThan(64 << 20);
      await expectSameRam(qemu, image);
    },
  );
});

// Linux kills a guest in a full cgroup if the pages that come back from swap look as if it needed them all.
test('a guest that is mostly swapped out survives its restore and its saves', async (context) => {
  const local = testCleanup();
  const swap = swapFile(local, 2 * MEBIBYTES);
  if (swap.unavailable !== undefined) return context.skip(swap.unavailable);
  const make = memoryCgroups(local);
  if ('unavailable' in make) return context.skip(make.unavailable);
  const guests = make('swapped');
  guests.limit(96 << 20);
  const memory = ['-object', `memory-backend-ram,id=ram0,size=${MEBIBYTES}M`];
  const options = { machine: 'q35', mebibytes: MEBIBYTES, memory, incoming: true, paused: true } as const;
  const qemu = await Qemu.start({ ...options, prefix: guests.prefix }, local);
  await succeed(['restore', '--qmp', qemu.socket, '--then', 'pause', image]);
  const again = join(diskDirectory(local), 'image');
  for (const _ of [1, 2, 3]) await succeed(['save', '--qmp', qemu.socket, '--force', again]);
  // Even the test's own reading would end it.
  guests.limit(2 * MEBIBYTES * 2 ** 20);
  await expectSameRam(qemu, again);
});
