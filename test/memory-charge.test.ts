import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type MemoryCgroup, memoryCgroups } from './support/cgroup.ts';
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
