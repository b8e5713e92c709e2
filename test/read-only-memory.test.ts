import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import type { Cleanup } from './support/cleanup.ts';
import { failWith, succeed } from './support/cli.ts';
import { pausedGuest, testCleanup, waitingQemu } from './support/fixtures.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory, memoryDirectory } from './support/paths.ts';
import type { Qemu, QemuOptions } from './support/qemu.ts';

// An NVDIMM whose file QEMU has mapped for reading only, as Kata's root file system is, which many guests share.

const MEBIBYTES = 32;

interface Kind {
  name: string;
  share: 'on' | 'off';
  directory: (cleanup: Cleanup) => string;
}

const KINDS: Kind[] = [
  { name: 'shared, on tmpfs', share: 'on', directory: memoryDirectory },
  { name: 'shared, on disk', share: 'on', directory: diskDirectory },
  { name: 'private, on disk', share: 'off', directory: diskDirectory },
];

describe.for(KINDS)('an NVDIMM that is mapped for reading only, $name', ({ share, directory }) => {
  let file: string;
  let image: string;
  let options: Partial<QemuOptions>;
  let local: Cleanup;

  beforeEach(() => {
    local = testCleanup();
    file = join(directory(local), 'rootfs');
    image = join(diskDirectory(local), 'image');
    const backend = `memory-backend-file,id=nv0,size=${MEBIBYTES}M,mem-path=${file},share=${share},readonly=on`;
    const device = 'nvdimm,memdev=nv0,id=nvdimm0,unarmed=on';
    const extra = [
      '-machine',
      'nvdimm=on',
      '-m',
      '64,slots=1,maxmem=1G',
      '-object',
      backend,
      '-device',
      device,
    ];
    options = { extra };
  });

  async function saved(content: Buffer): Promise<void> {
    writeFileSync(file, content);
    const source = await pausedGuest(local, options);
    await succeed(['save', '--qmp', source.socket, image]);
    await expectSameRam(source, image);
  }

  async function expectUntouched(qemu: Qemu, content: Buffer): Promise<void> {
    expect(await qemu.qmp.status()).toBe('inmigrate');
    expect(readFileSync(file).equals(content), 'the file behind the NVDIMM was written').toBe(true);
  }

  test('is left alone where it holds what the image says', async () => {
    const content = rootfs(1);
    await saved(content);
    const qemu = await waitingQemu(local, { ...options, paused: true });
    await succeed(['restore', '--qmp', qemu.socket, image]);
    await expectSameRam(qemu, image);
    expect(readFileSync(file).equals(content)).toBe(true);
  });

  test('is refused where its file is another one by now', async () => {
    await saved(rootfs(1));
    const upgraded = rootfs(2);
    writeFileSync(file, upgraded);
    const qemu = await waitingQemu(local, { ...options, paused: true });
    for (const method of ['auto', 'fill']) {
      const line = ['restore', '--qmp', qemu.socket, '--method', method, image];
      const failure = await failWith(5, 'E_GUEST_MISMATCH', line);
      expect(failure.error?.message).toContain('nv0');
      expect(failure.error?.path).toBe(file);
      expect(failure.guestState).toBe('untouched');
      await expectUntouched(qemu, upgraded);
    }
  });

  test('is refused where it holds data that the image has not', async () => {
    await saved(Buffer.alloc(MEBIBYTES << 20));
    const stale = Buffer.alloc(MEBIBYTES << 20);
    stale[(MEBIBYTES << 20) - 1] = 1;
    writeFileSync(file, stale);
    const qemu = await waitingQemu(local, { ...options, paused: true });
    for (const method of ['fill', 'qemu']) {
      const line = ['restore', '--qmp', qemu.socket, '--method', method, image];
      const failure = await failWith(5, 'E_GUEST_MISMATCH', line);
      expect(failure.error?.message).toContain(`${(MEBIBYTES << 20) - 4096}`);
      expect(failure.guestState).toBe('untouched');
      await expectUntouched(qemu, stale);
    }
  });

  test("is not left to QEMU's own loader, which would write to it", async () => {
    const content = rootfs(1);
    await saved(content);
    const qemu = await waitingQemu(local, { ...options, paused: true });
    const line = ['restore', '--qmp', qemu.socket, '--method', 'qemu', image];
    const failure = await failWith(5, 'E_GUEST_UNSUPPORTED', line);
    expect(failure.error?.message).toMatch(/nv0.*reading only.*fill/);
    expect(failure.guestState).toBe('untouched');
    await expectUntouched(qemu, content);
  });

  test("is no obstacle to QEMU's own loader where the image has no page of it", async () => {
    const zeros = Buffer.alloc(MEBIBYTES << 20);
    await saved(zeros);
    const qemu = await waitingQemu(local, { ...options, paused: true });
    await succeed(['restore', '--qmp', qemu.socket, '--method', 'qemu', image]);
    await expectSameRam(qemu, image);
    expect(readFileSync(file).equals(zeros)).toBe(true);
  });
});

/** Data that differs from page to page, with a hole of zeros in the middle. */
function rootfs(seed: number): Buffer {
  const content = Buffer.alloc(MEBIBYTES << 20);
  for (let at = 0; at < content.length; at += 4096) content.writeUInt32LE(at / 4096 + seed, at);
  return content.fill(0, 8 << 20, 24 << 20);
}
