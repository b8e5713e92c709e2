import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, type TestContext, test } from 'vitest';
import { Cleanup } from './support/cleanup.ts';
import { succeed } from './support/cli.ts';
import { expectGuestRunsOn, waitForProgram } from './support/console.ts';
import { type Content, GUEST_MIB, type GuestKind, KINDS, type MemoryMaker } from './support/kinds.ts';
import { expectSameRam, Image, ramDigest } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';
import { stockLoad, stockSave } from './support/stock.ts';

// Every kind of guest RAM: booted once, saved paused through all pairs of settings, restored in every way.

/** All pairs of channels, engine and direct I/O: every channel count with every engine, and each of these both ways. */
const SETTINGS = [1, 2, 7, 128].flatMap((channels, row) =>
  ['io-uring', 'tokio-uring', 'blocking'].map((engine, column) => ({
    channels,
    engine,
    direct: (row + column) % 2 === 0,
  })),
);

/** Ways of bringing an image back into a QEMU that waits for it; stock QEMU needs memory that holds nothing. */
const WAYS: { name: string; content: Content; restore: (qemu: Qemu, image: string) => Promise<unknown> }[] = [
  { name: 'mapram, fill', content: 'usual', restore: (qemu, image) => byMapram(qemu, image, 'fill') },
  { name: 'mapram, qemu', content: 'usual', restore: (qemu, image) => byMapram(qemu, image, 'qemu') },
  { name: 'stock QEMU', content: 'nothing', restore: (qemu, image) => stockLoad(qemu, image) },
  {
    name: 'stock QEMU, multifd and direct I/O',
    content: 'nothing',
    restore: (qemu, image) => stockLoad(qemu, image, { multifd: true, directIo: true }),
  },
];

describe.each(KINDS)('RAM $name ($machine)', (kind) => {
  const cleanup = new Cleanup();
  let directory: string;
  let memory: MemoryMaker | { unavailable: string };
  let source: Qemu;
  let serial: string;
  let image: string;

  beforeAll(async () => {
    directory = diskDirectory(cleanup);
    memory = kind.prepare(cleanup);
    if ('unavailable' in memory) return;
    source = await Qemu.start(
      { machine: kind.machine, mebibytes: GUEST_MIB, memory: memory(cleanup), program: 64 },
      cleanup,
    );
    await waitForProgram(source);
    await source.qmp.execute('stop');
    serial = source.serial();
    image = join(directory, 'image');
  });
  afterAll(() => cleanup.run());

  const available = (context: TestContext): MemoryMaker => {
    if ('unavailable' in memory) context.skip(memory.unavailable);
    return memory as MemoryMaker;
  };

  test('one RAM section, whatever the settings, and it is the guest’s memory', async (context) => {
    available(context);
    await saveByAllSettings(source, image);
  });

  test('QEMU itself writes the same RAM section', async (context) => {
    available(context);
    const own = join(directory, 'own');
    // With one stream and with several, in turn.
    const multifd = kind.machine === 'q35';
    await stockSave(source, own, { multifd, directIo: multifd });
    expect(ramDigest(own)).toBe(ramDigest(image));
    rmSync(own);
  });

  test.for(WAYS)('restored by $name', async ({ restore, content }, context) => {
    await restoreAndRun(kind, available(context), content, (qemu) => restore(qemu, image), image, serial);
  });

  if (kind.name.startsWith('file'))
    test.for(WAYS.slice(0, 2))('restored by $name into used memory', async ({ restore }, context) => {
      await restoreAndRun(kind, available(context), 'stale', (qemu) => restore(qemu, image), image, serial);
    });
});

function byMapram(qemu: Qemu, image: string, method: string): Promise<unknown> {
  return succeed(['restore', '--qmp', qemu.socket, '--method', method, image]);
}

async function saveByAllSettings(source: Qemu, image: string): Promise<void> {
  let first: string | undefined;
  for (const { channels, engine, direct } of SETTINGS) {
    const path = first === undefined ? image : `${image}.next`;
    const options = ['--channels', String(channels), '--engine', engine, ...(direct ? [] : ['--no-direct'])];
    const saved = await succeed(['save', '--qmp', source.socket, ...options, path]);
    expect(saved).toMatchObject({ ok: true, channels, engine, direct });
    const digest = ramDigest(path);
    if (first === undefined) {
      first = digest;
      await expectSameRam(source, path, { canonical: true });
      expectPausedImage(path);
    } else {
      expect(digest, options.join(' ')).toBe(first);
      rmSync(path);
    }
  }
  expect(await source.qmp.status()).toBe('paused');
}

function expectPausedImage(path: string): void {
  const image = new Image(path);
  image.close();
  expect(image.runState).toBe('paused');
}

async function restoreAndRun(
  kind: GuestKind,
  maker: MemoryMaker,
  content: Content,
  restore: (qemu: Qemu) => Promise<unknown>,
  image: string,
  before: string,
): Promise<void> {
  const cleanup = new Cleanup();
  try {
    const memory = maker(cleanup, content);
    const options = {
      machine: kind.machine,
      mebibytes: GUEST_MIB,
      memory,
      program: 64,
      incoming: true,
      paused: true,
    };
    const qemu = await Qemu.start(options, cleanup);
    await restore(qemu);
    await qemu.qmp.waitForStatus('paused');
    await expectSameRam(qemu, image);
    await qemu.qmp.execute('cont');
    await expectGuestRunsOn(qemu, before);
  } finally {
    await cleanup.run();
  }
}
