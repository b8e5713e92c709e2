import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Cleanup } from './support/cleanup.ts';
import { failWith, succeed } from './support/cli.ts';
import { pausedGuest, testCleanup, waitingQemu } from './support/fixtures.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import type { QemuOptions } from './support/qemu.ts';
import { ramDigests } from './support/ram.ts';

// A waiting QEMU that is not the image's: refused before a byte of its memory is written.

const cleanup = new Cleanup();
let image: string;

beforeAll(async () => {
  image = join(diskDirectory(cleanup), 'image');
  const source = await pausedGuest(cleanup);
  await succeed(['save', '--qmp', source.socket, image]);
});
afterAll(() => cleanup.run());

const OTHERS: { name: string; options: Partial<QemuOptions>; says: RegExp }[] = [
  { name: 'another machine', options: { machine: 'pc' }, says: /pc-q35.*pc-i440fx|pc-i440fx.*pc-q35/ },
  { name: 'more memory', options: { mebibytes: 128 }, says: /pc\.ram/ },
  { name: 'less memory', options: { mebibytes: 32 }, says: /pc\.ram/ },
  { name: 'a block too few', options: { extra: ['-global', 'e1000.romfile='] }, says: /e1000\.rom/ },
  { name: 'a block too many', options: { extra: ['-device', 'rtl8139'] }, says: /rtl8139\.rom/ },
];

test.for(OTHERS)('$name', async ({ options, says }) => {
  const qemu = await waitingQemu(testCleanup(), { paused: true, ...options });
  const before = await ramDigests(qemu);
  for (const method of ['auto', 'fill', 'qemu']) {
    const line = ['restore', '--qmp', qemu.socket, '--method', method, image];
    const failure = await failWith(5, 'E_GUEST_MISMATCH', line);
    expect(failure.error?.message).toMatch(says);
    expect(failure.guestState).toBe('untouched');
  }
  expect(await qemu.qmp.status()).toBe('inmigrate');
  expect(await ramDigests(qemu)).toEqual(before);
});

test('a QEMU that is not waiting for an image', async () => {
  const qemu = await pausedGuest(testCleanup());
  const before = await ramDigests(qemu);
  const failure = await failWith(5, 'E_GUEST_UNSUPPORTED', ['restore', '--qmp', qemu.socket, image]);
  expect(failure.error?.message).toMatch(/-incoming defer/);
  expect(await qemu.qmp.status()).toBe('paused');
  expect(await ramDigests(qemu)).toEqual(before);
});

test.for(['fill', 'qemu'])(
  'other devices with the same RAM are found out by QEMU, too late (%s)',
  async (method) => {
    const local = testCleanup();
    // A second generator of random numbers has no RAM block, so nothing tells it before QEMU reads the device state.
    const source = await pausedGuest(local, { extra: ['-device', 'virtio-rng-pci'] });
    const own = join(diskDirectory(local), 'image');
    await succeed(['save', '--qmp', source.socket, own]);
    const qemu = await waitingQemu(local);
    const line = ['restore', '--qmp', qemu.socket, '--method', method, '--then', 'resume', own];
    const failure = await failWith(1, 'E_RESTORE_INCOMPLETE', line);
    expect(failure.guestState).toBe('unusable');
    expect(await qemu.qmp.status()).not.toBe('running');
  },
);

test('ACPI tables of another length are no mismatch for fill', async () => {
  const local = testCleanup();
  const directory = diskDirectory(local);
  const table = join(directory, 'table');
  writeFileSync(table, Buffer.alloc(60_000, 0x5a));
  const long = { extra: [1, 2, 3].flatMap((n) => ['-acpitable', `sig=TST${n},data=${table}`]) };
  const source = await pausedGuest(local, long);
  const own = join(directory, 'image');
  await succeed(['save', '--qmp', source.socket, own]);
  const copy = await waitingQemu(local, { paused: true });
  await failWith(5, 'E_GUEST_MISMATCH', ['restore', '--qmp', copy.socket, '--method', 'qemu', own]);
  await succeed(['restore', '--qmp', copy.socket, own]);
  expect(await copy.qmp.status()).toBe('paused');
  await expectSameRam(copy, own);
});
