import { type ChildProcess, execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeEach, describe, expect, type TestContext, test } from 'vitest';
import type { Cleanup } from './support/cleanup.ts';
import { failWith, report, run, start, succeed } from './support/cli.ts';
import { imageOn, loopDevice, needLoopDevices } from './support/device.ts';
import { largeGuest, pausedGuest, SLOWLY, SMALL, testCleanup, waitingQemu } from './support/fixtures.ts';
import { printed, startProgram } from './support/library.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory, memoryDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';
import { stockLoad, stockSave } from './support/stock.ts';

// Block devices as the target and the source of an image: nothing there is created, renamed or truncated, and what is not a whole
// image never looks like one.

beforeEach(needLoopDevices);

/** Larger than the small guest's image. */
const ROOMY = 128;

const save = (qemu: Qemu, ...words: string[]): string[] => ['save', '--qmp', qemu.socket, ...words];

describe('an image on a block device', () => {
  test('is loaded by stock QEMU and by both methods of restore', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    const before = statSync(device);
    await succeed(save(source, device));
    const after = statSync(device);
    expect([after.ino, after.rdev, after.isBlockDevice()]).toEqual([before.ino, before.rdev, true]);
    const copy = await imageOn(device, cleanup);
    await expectSameRam(source, copy, { canonical: true });
    for (const multifd of [false, true]) {
      const stock = await waitingQemu(cleanup);
      await stockLoad(stock, device, { multifd, directIo: multifd });
      await expectSameRam(stock, copy);
    }
    for (const method of ['fill', 'qemu']) {
      const restored = await waitingQemu(cleanup);
      await succeed(['restore', '--qmp', restored.socket, '--method', method, device]);
      await expectSameRam(restored, copy);
    }
  });

  test('of 4 KiB sectors, and without direct I/O', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY, 4096);
    await succeed(save(source, device));
    await expectSameRam(source, await imageOn(device, cleanup), { canonical: true });
    await succeed(save(source, '--force', '--no-direct', device));
    await expectSameRam(source, await imageOn(device, cleanup));
  });

  test('of sectors larger than a page is refused for direct I/O, and works without', async (context) => {
    const cleanup = testCleanup();
    const device = tryLoopDevice(cleanup, context, 16_384);
    const source = await pausedGuest(cleanup);
    const waiting = await waitingQemu(cleanup);
    const restore = ['restore', '--qmp', waiting.socket];
    const refused = async (line: string[]): Promise<void> => {
      const failure = await failWith(4, 'E_HOST_UNSUPPORTED', line);
      expect(failure).toMatchObject({ guestState: 'untouched', error: { path: device } });
      expect(failure.error?.message).toContain('units of 16384 bytes');
    };
    await refused(save(source, device));
    await succeed(save(source, '--no-direct', device));
    await refused([...restore, device]);
    expect(await waiting.qmp.status()).toBe('inmigrate');
    await succeed([...restore, '--no-direct', device]);
    await expectSameRam(waiting, await imageOn(device, cleanup));
  });

  test('is reached by a symlink such as LVM makes, which stays', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    const link = join(diskDirectory(cleanup), 'lv');
    symlinkSync(device, link);
    await succeed(save(source, '--force', link));
    expect(readlinkSync(link)).toBe(device);
    await expectSameRam(source, await imageOn(link, cleanup));
  });

  test('that dd put there is found by its description, whatever record an earlier one left', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    // Its record stays behind on the device, and is not the next image's.
    await succeed(save(source, device));
    const other = await pausedGuest(cleanup, { extra: ['-device', 'virtio-rng-pci'] });
    const file = join(diskDirectory(cleanup), 'image');
    await succeed(save(other, file));
    execFileSync('dd', [`if=${file}`, `of=${device}`, 'bs=1M', 'conv=notrunc', 'status=none']);
    const { imageBytes } = await succeed(['inspect', file]);
    expect(await succeed(['inspect', device])).toMatchObject({ imageBytes });
    await expectSameRam(other, await imageOn(device, cleanup));
    // QEMU itself cannot save to a device: it would truncate it.
    const stock = join(diskDirectory(cleanup), 'stock');
    await stockSave(source, stock);
    execFileSync('blkdiscard', ['--force', device], { stdio: 'pipe' });
    execFileSync('dd', [`if=${stock}`, `of=${device}`, 'bs=1M', 'conv=notrunc', 'status=none']);
    await expectSameRam(source, await imageOn(device, cleanup));
  });

  test('that has neither a description nor a record is refused with what is missing', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    const file = join(diskDirectory(cleanup), 'image');
    await succeed(save(source, file));
    const bytes = readFileSync(file);
    // The description begins behind EOF, its section type and its length.
    const description = bytes.lastIndexOf('{"configuration"');
    expect(description).toBeGreaterThan(0);
    writeFileSync(file, bytes.subarray(0, description - 5));
    await succeed(['inspect', file]);
    execFileSync('dd', [`if=${file}`, `of=${device}`, 'bs=1M', 'conv=notrunc', 'status=none']);
    const failure = await failWith(3, 'E_IMAGE_INVALID', ['inspect', device]);
    expect(failure).toMatchObject({ error: { message: expect.stringContaining('VMDESC') } });
  });

  test('whose end could be one that a guest planted is refused', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    const file = join(diskDirectory(cleanup), 'image');
    await succeed(save(source, file));
    const { imageBytes } = await succeed(['inspect', file]);
    execFileSync('dd', [`if=${file}`, `of=${device}`, 'bs=1M', 'conv=notrunc', 'status=none']);
    const description = '{"devices":[]}';
    const end = Buffer.from(
      `\x7e\0\0\0\x01\0\x06\0\0\0${String.fromCharCode(description.length)}${description}`,
    );
    const disk = openSync(device, 'r+');
    writeSync(disk, end, 0, end.length, Number(imageBytes) + 5000);
    closeSync(disk);
    await failWith(3, 'E_IMAGE_INVALID', ['inspect', device]);
  });
});

/** A loop device of large sectors, which Linux makes since 6.15. */
function tryLoopDevice(cleanup: Cleanup, context: TestContext, sectorBytes: number): string {
  try {
    return loopDevice(cleanup, ROOMY, sectorBytes);
  } catch (error) {
    return context.skip(`this kernel makes no sectors of ${sectorBytes} bytes: ${String(error)}`);
  }
}

/** Options that give a guest a disk. */
const disk = (path: string): string[] => ['-drive', `file=${path},format=raw,if=virtio`];

describe('a device is refused, and what it holds is left alone', () => {
  const content = (device: string): Buffer => {
    const bytes = Buffer.alloc(1 << 20);
    const disk = openSync(device, 'r');
    readSync(disk, bytes, 0, bytes.length, 0);
    closeSync(disk);
    return bytes;
  };

  test('that holds a file system, swap or an image, without --force', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    const fillings = [
      () => execFileSync('mkfs.ext4', ['-q', '-F', device]),
      () => execFileSync('mkswap', ['--force', device], { stdio: 'pipe' }),
      () => run(save(source, '--force', device)),
    ];
    for (const fill of fillings) {
      await fill();
      const before = content(device);
      const failure = await failWith(1, 'E_TARGET_EXISTS', save(source, device));
      expect(failure).toMatchObject({ guestState: 'untouched', error: { path: device } });
      expect(content(device).equals(before)).toBe(true);
    }
  });

  test('that is read-only', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    // Otherwise the next one that gets the number would be read-only too.
    cleanup.add(() => void execFileSync('blockdev', ['--setrw', device]));
    execFileSync('blockdev', ['--setro', device]);
    const failure = await failWith(4, 'E_PERMISSION', save(source, '--force', device));
    expect(failure).toMatchObject({
      guestState: 'untouched',
      error: { message: `${device} is read-only`, path: device },
    });
  });

  test('that blkid cannot look at, without --force', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    execFileSync('mkfs.ext4', ['-q', '-F', device]);
    const before = content(device);
    // The real blkid, but of a user who may not open the device.
    const blkid = execFileSync('sh', ['-c', 'PATH="$PATH:/usr/sbin:/sbin" command -v blkid'], {
      encoding: 'utf8',
    });
    const programs = mkdtempSync(join(tmpdir(), 'mapram-'));
    cleanup.add(() => rmSync(programs, { recursive: true }));
    const script = `#!/bin/sh\nexec setpriv --reuid 65534 --regid 65534 --clear-groups ${blkid.trim()} "$@"\n`;
    writeFileSync(join(programs, 'blkid'), script, { mode: 0o755 });
    const env = { PATH: `${programs}:${process.env['PATH']}` };
    const refused = await run([...save(source, '--json', device)], { env });
    const reason = expect.stringMatching(/may hold anything: .*Permission denied/);
    expect(JSON.parse(refused.stdout)).toMatchObject({ error: { code: 'E_TARGET_EXISTS', message: reason } });
    expect(content(device).equals(before)).toBe(true);
  });

  test('that is mounted, or the disk of a guest, --force or not', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    execFileSync('mkfs.ext4', ['-q', device]);
    const directory = join(diskDirectory(cleanup), 'mount');
    mkdirSync(directory);
    execFileSync('mount', [device, directory]);
    const mounted = await run([...save(source, '--force', '--json', device)]);
    execFileSync('umount', [directory]);
    expect(JSON.parse(mounted.stdout)).toMatchObject({ error: { code: 'E_TARGET_BUSY' } });

    await Qemu.start({ ...SMALL, extra: disk(device) }, cleanup);
    const before = content(device);
    await failWith(1, 'E_TARGET_BUSY', save(source, '--force', device));
    expect(content(device).equals(before)).toBe(true);
  });

  test.for([
    { name: 'the device', by: 'device', targets: ['device', 'partition', 'node'] },
    { name: 'a partition', by: 'partition', targets: ['device', 'partition'] },
    // Not to be seen unless it is the guest that is saved.
    { name: 'a node elsewhere', by: 'node', targets: ['device', 'partition'], isHidden: true },
    { name: 'the file of a loop device', by: 'file', targets: ['device', 'partition'] },
  ] as const)('whose bytes a guest has for a disk by $name', async ({ by, targets, ...rest }) => {
    const cleanup = testCleanup();
    const other = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, 300);
    execFileSync('addpart', [device, '1', '2048', String(ROOMY * 2048)]);
    cleanup.add(() => void execFileSync('delpart', [device, '1']));
    const node = join(diskDirectory(cleanup), 'node');
    execFileSync('mknod', [node, 'b', '7', /\d+$/.exec(device)?.[0] as string]);
    const file = readFileSync(`/sys/block/${basename(device)}/loop/backing_file`, 'utf8').trim();
    const paths = { device, partition: `${device}p1`, node, file };
    const guest = await Qemu.start({ ...SMALL, extra: disk(paths[by]) }, cleanup);
    for (const target of targets) {
      const before = content(device);
      const failure = await failWith(2, 'E_USAGE', save(guest, '--force', paths[target]));
      expect(failure).toMatchObject({ guestState: 'untouched', error: { path: paths[target] } });
      await failWith(2, 'E_USAGE', save(guest, paths[target]));
      if (!('isHidden' in rest)) await failWith(1, 'E_TARGET_BUSY', save(other, '--force', paths[target]));
      expect(content(device).equals(before)).toBe(true);
    }
    expect(await guest.qmp.status()).toBe('running');
  });

  test('but not for another partition of the same device', async () => {
    const cleanup = testCleanup();
    const device = loopDevice(cleanup, 300);
    for (const [number, start] of [
      ['1', 2048],
      ['2', (ROOMY + 1) * 2048],
    ]) {
      execFileSync('addpart', [device, String(number), String(start), String(ROOMY * 2048)]);
      cleanup.add(() => void execFileSync('delpart', [device, String(number)]));
    }
    const guest = await Qemu.start({ ...SMALL, extra: disk(`${device}p1`) }, cleanup);
    await succeed(save(guest, `${device}p2`));
  });

  test('that is too small, before the guest is stopped', async () => {
    const cleanup = testCleanup();
    const source = await Qemu.start(SMALL, cleanup);
    const device = loopDevice(cleanup, 32);
    execFileSync('mkfs.ext4', ['-q', device]);
    const before = content(device);
    const seen = source.qmp.events.length;
    await failWith(1, 'E_NO_SPACE', save(source, '--force', device));
    expect(source.qmp.events.slice(seen).map(({ event }) => event)).not.toContain('STOP');
    expect(content(device).equals(before)).toBe(true);
  });

  test('whose file another loop device is on, and a file that one is on', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    const device = loopDevice(cleanup, ROOMY);
    const file = readFileSync(`/sys/block/${basename(device)}/loop/backing_file`, 'utf8').trim();
    const twin = execFileSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).trim();
    cleanup.add(() => void execFileSync('losetup', ['--detach', twin]));
    const failure = await failWith(1, 'E_TARGET_BUSY', save(source, device));
    expect(failure.error?.message).toContain(`${twin} is on the same file`);
    const { ino } = statSync(file);
    await failWith(1, 'E_TARGET_BUSY', save(source, '--force', file));
    expect(statSync(file).ino).toBe(ino);
    expect(content(device).every((byte) => byte === 0)).toBe(true);
  });

  test('that is no device but a misspelt name among them', async () => {
    const cleanup = testCleanup();
    const source = await pausedGuest(cleanup);
    // A name of this run's own: what a failing run leaves in /dev must not fail the next.
    const name = `/dev/mapram-no-such-device-${process.pid}`;
    const created = [name, `${name}.partial`];
    for (const path of created) cleanup.add(() => rmSync(path, { force: true }));
    const failure = await failWith(2, 'E_USAGE', save(source, '--force', name));
    expect(failure.guestState).toBe('untouched');
    expect(created.filter((path) => existsSync(path))).toEqual([]);
  });
});

test('a save that is cancelled leaves no image, and a device that can be saved to without --force', async () => {
  const cleanup = testCleanup();
  const guest = await largeGuest(cleanup, 512);
  const device = loopDevice(cleanup, 700);
  const running = start(save(guest, ...SLOWLY, '--json', device));
  await guest.qmp.waitForStatus('paused');
  running.child.kill('SIGINT');
  expect(report(await running.done)).toMatchObject({ error: { code: 'E_CANCELLED' }, guestState: 'running' });
  await failWith(3, 'E_IMAGE_INVALID', ['inspect', device]);
  await succeed(save(guest, device));
  expect(await succeed(['inspect', device])).toMatchObject({ machine: expect.stringMatching(/q35/) });
});

describe('small pages, on a device that takes small segments', () => {
  const [BYTES, PAGE] = [32 << 20, 4096];
  const SAVE_AND_RESTORE = `
    import { restore, save } from 'mapram';
    const [image, file, target, length] = process.argv.slice(1);
    const memory = (file) => [{ name: 'ram', file, length: Number(length) }];
    const { copiedBytes } = await save({ memory: memory(file), machine: 'm', image, channels: 1 });
    await restore({ memory: memory(target), image });
    console.log(copiedBytes);`;

  /** Bytes that a save of these copies; they must be restored. */
  async function copied(bytes: Buffer): Promise<number> {
    const cleanup = testCleanup();
    const directory = memoryDirectory(cleanup);
    const [memory, target] = [join(directory, 'memory'), join(directory, 'target')];
    writeFileSync(memory, bytes);
    writeFileSync(target, Buffer.alloc(BYTES, 1));
    const words = [loopDevice(cleanup, 64), memory, target, String(BYTES)];
    const bytesCopied = await printed(startProgram(cleanup, SAVE_AND_RESTORE, ...words));
    expect(readFileSync(target).equals(bytes)).toBe(true);
    return Number(bytesCopied);
  }

  test('are written from where they are', async () => {
    expect(await copied(Buffer.alloc(BYTES, 7))).toBe(0);
  });

  test('are copied where zero pages are strewn among them', async () => {
    const bytes = Buffer.alloc(BYTES, 7);
    for (let page = 9; page < BYTES / PAGE; page += 10) bytes.fill(0, page * PAGE, (page + 1) * PAGE);
    // All but the first chunk, which shows it.
    expect(await copied(bytes)).toBe(BYTES - (4 << 20));
  });
});

describe('a save that is killed', () => {
  const KILLS = 200;
  const LANES = 2;
  const BYTES = 8 << 20;

  /** Runs the library in a process of its own: waits for a line, saves the memory in a file, and says that it is done. */
  const SAVE = `
    import { readSync } from 'node:fs';
    import { save } from 'mapram';
    const [image, file, length] = process.argv.slice(1);
    readSync(0, Buffer.alloc(1));
    const memory = [{ name: 'ram', file, length: Number(length) }];
    await save({ memory, machine: 'm', image, force: true });
    console.log('done');`;
  /** Says for each line what the device looks like: an error's code, or else the one byte that all of its memory consists of. */
  const LOOK = `
    import { readFileSync } from 'node:fs';
    import { createInterface } from 'node:readline';
    import { restore } from 'mapram';
    const [image, file, length] = process.argv.slice(1);
    const memory = [{ name: 'ram', file, length: Number(length) }];
    for await (const _ of createInterface({ input: process.stdin })) {
      const error = await restore({ memory, image }).then(() => undefined, (error) => error);
      const bytes = readFileSync(file);
      const isOne = bytes.equals(Buffer.alloc(bytes.length, bytes[0]));
      console.log(error ? error.code : isOne ? bytes[0] : 'mixed');
    }`;

  async function answer(child: ChildProcess): Promise<string> {
    const answered = printed(child);
    child.stdin?.write('\n');
    return answered;
  }

  /** Kills saves to one device and counts what they left. */
  async function lane(cleanup: Cleanup, kills: number): Promise<Record<string, number>> {
    const device = loopDevice(cleanup, 32);
    const directory = diskDirectory(cleanup);
    const [memory, target] = [join(directory, 'memory'), join(directory, 'target')];
    writeFileSync(memory, Buffer.alloc(BYTES, 255));
    writeFileSync(target, Buffer.alloc(BYTES));
    const saver = (): ChildProcess => startProgram(cleanup, SAVE, device, memory, String(BYTES));
    const looker = startProgram(cleanup, LOOK, device, target, String(BYTES));
    // Node takes longer to start than the save takes: the next ones start meanwhile.
    const ready = [saver(), saver(), saver()];
    await answer(ready.shift() as ChildProcess);
    let milliseconds = 50;
    let before = 255;
    const counts: Record<string, number> = {};
    for (let round = 1; round <= kills; round++) {
      const byte = 1 + (round % 250);
      writeFileSync(memory, Buffer.alloc(BYTES, byte));
      ready.push(saver());
      const child = ready.shift() as ChildProcess;
      const ended = new Promise((resolve) => child.once('close', resolve));
      void answer(child);
      await sleep(Math.random() * milliseconds);
      child.kill('SIGKILL');
      await ended;
      const found = await answer(looker);
      const outcome = found === String(before) ? 'before' : found === String(byte) ? 'whole' : found;
      expect(['E_IMAGE_INVALID', 'before', 'whole']).toContain(outcome);
      if (outcome === 'whole') before = byte;
      if (outcome === 'E_IMAGE_INVALID') before = -1;
      counts[outcome] = (counts[outcome] ?? 0) + 1;
      // Most kills shall hit the middle, however busy the machine is.
      milliseconds *= outcome === 'whole' ? 0.8 : 1.1;
    }
    return counts;
  }

  test(`at ${KILLS} random moments leaves a whole image or none`, { timeout: 300_000 }, async () => {
    const cleanup = testCleanup();
    const lanes = Array.from({ length: LANES }, () => lane(cleanup, KILLS / LANES));
    const counts = await Promise.all(lanes);
    console.log('killed saves left', ...counts);
    for (const outcome of ['E_IMAGE_INVALID', 'whole']) {
      expect(counts.reduce((sum, count) => sum + (count[outcome] ?? 0), 0)).toBeGreaterThan(10);
    }
  });
});
