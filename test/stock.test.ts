import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cleanup } from './support/cleanup.ts';
import { succeed } from './support/cli.ts';
import { expectGuestRunsOn, waitForProgram } from './support/console.ts';
import { pausedGuest, testCleanup, waitingQemu } from './support/fixtures.ts';
import { expectSameRam, Image } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import { Qemu, type QemuOptions } from './support/qemu.ts';
import { ramDigests } from './support/ram.ts';
import { stockSave } from './support/stock.ts';

const GUEST: QemuOptions = { machine: 'pc', mebibytes: 192, program: 64 };
const METHODS = ['fill', 'qemu'];

describe('images that QEMU saved', () => {
  const cleanup = new Cleanup();
  let source: Qemu;

  beforeAll(async () => {
    source = await Qemu.start(GUEST, cleanup);
    await waitForProgram(source);
  });
  afterAll(() => cleanup.run());

  describe.each([
    { live: true, multifd: false },
    { live: true, multifd: true },
    { live: false, multifd: false },
    { live: false, multifd: true },
  ])('live: $live, multifd: $multifd', ({ live, multifd }) => {
    const files = new Cleanup();
    let image: string;
    let serial: string;

    beforeAll(async () => {
      image = join(diskDirectory(files), 'image');
      // A guest that its last save left stopped can be saved again only after it ran.
      await source.qmp.execute('cont');
      if (!live) await source.qmp.execute('stop');
      await stockSave(source, image, { multifd, directIo: multifd });
      serial = source.serial();
    });
    afterAll(() => files.run());

    test.for(METHODS)('restored by %s', async (method) => {
      const copy = await Qemu.start({ ...GUEST, incoming: true, paused: true }, testCleanup());
      await succeed(['restore', '--qmp', copy.socket, '--method', method, '--then', 'pause', image]);
      await expectSameRam(copy, image);
      await expectSameRam(source, image);
      await copy.qmp.execute('cont');
      await expectGuestRunsOn(copy, serial);
    });
  });
});

test.for(METHODS)('an image at an odd offset of another file is restored by %s', async (method) => {
  const cleanup = testCleanup();
  const image = join(diskDirectory(cleanup), 'image');
  const source = await pausedGuest(cleanup);
  await stockSave(source, `${image},offset=0x11921`);
  const inspected = await succeed(['inspect', '--offset', '71969', image]);
  expect(inspected.blocks?.map((block) => block.name)).toContain('pc.ram');
  const copy = await waitingQemu(cleanup, { paused: true });
  await succeed(['restore', '--qmp', copy.socket, '--method', method, '--offset', '71969', image]);
  expect(await ramDigests(copy)).toEqual(await ramDigests(source));
});

test.for(METHODS)('bytes that stand under a clear bit are not restored by %s', async (method) => {
  const cleanup = testCleanup();
  const image = join(diskDirectory(cleanup), 'image');
  const source = await pausedGuest(cleanup);
  await stockSave(source, image);
  litterClearPages(image);
  const copy = await waitingQemu(cleanup, { paused: true });
  await succeed(['restore', '--qmp', copy.socket, '--method', method, image]);
  await expectSameRam(copy, image);
  rmSync(image);
});

/** What a live save leaves where a page became zero after it was written: data, and a bit that says there is none. */
function litterClearPages(path: string): void {
  const image = new Image(path);
  image.close();
  const block = image.blocks.find(({ name }) => name === 'pc.ram');
  if (block === undefined) throw new Error('no pc.ram');
  const file = openSync(path, 'r+');
  for (let page = 1000; page < 3000; page += 7)
    if (((block.bitmap[page >> 3] as number) >> (page & 7)) % 2 === 0)
      writeSync(file, Buffer.alloc(4096, 0xa5), 0, 4096, block.header[3] + page * 4096);
  closeSync(file);
}
