import { renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, type TestContext, test } from 'vitest';
import { ACCELERATOR } from './support/accelerator.ts';
import { Cleanup } from './support/cleanup.ts';
import { succeed } from './support/cli.ts';
import { expectGuestRunsOn, waitForProgram } from './support/console.ts';
import { type Content, GUEST_MIB, type GuestKind, KINDS, type MemoryMaker } from './support/kinds.ts';
import { expectSameRam, Image, ramDigest } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';
import { stockLoad, stockSave } from './support/stock.ts';

// Every kind of guest RAM: saved paused through all pairs of settings, restored in every way.

const CHANNELS = [1, 2, 7, 128];
const ENGINES = ['io-uring', 'tokio-uring', 'blocking'];
const COPIES = ['auto', 'always', 'never'];

/** A way of saving. */
interface Settings {
  channels: number;
  engine: string;
  direct: boolean;
  copy: string;
}

/**
 * All pairs of channels, engine, direct I/O and copying: every channel count with every engine, and each of these every way. Under KVM the
 * engines take turns, for the accelerator is nothing to the file.
 */
const SETTINGS: Settings[] = CHANNELS.flatMap((channels, row) =>
  ENGINES.map((engine, column) => {
    const direct = (row + column) % 2 === 0;
    return { channels, engine, direct, copy: COPIES[(row + column) % COPIES.length] as string };
  }).filter((_, column) => ACCELERATOR === 'tcg' || column === row % ENGINES.length),
);

/** A way of bringing an image back into a QEMU that waits for it. */
interface Way {
  name: string;
  /** Stock QEMU needs memory that holds nothing. */
  content: Content;
  restore: (qemu: Qemu, image: string, channels: number) => Promise<unknown>;
}

const WAYS: Way[] = [
  { name: 'mapram, fill', content: 'usual', restore: byMapram('fill') },
  { name: 'mapram, qemu', content: 'usual', restore: byMapram('qemu') },
  { name: 'stock QEMU', content: 'nothing', restore: (qemu, image) => stockLoad(qemu, image) },
  {
    name: 'stock QEMU, multifd and direct I/O',
    content: 'nothing',
    restore: (qemu, image, channels) => stockLoad(qemu, image, { multifd: true, directIo: true, channels }),
  },
];

/** A way, with the channels of the image and of its loader. */
type Load = Way & { channels: number };

/** Every way with one channel, several and very many under KVM, where guests start quickly; else the counts take turns. */
function loadsOf(kind: GuestKind): Load[] {
  if (ACCELERATOR === 'kvm')
    return WAYS.flatMap((way) => [1, 7, 128].map((channels) => ({ ...way, channels })));
  const turn = KINDS.indexOf(kind);
  return WAYS.map((way, row) => ({ ...way, channels: CHANNELS[(turn + row) % CHANNELS.length] as number }));
}

describe.each(KINDS)('RAM $name ($machine)', (kind) => {
  const cleanup = new Cleanup();
  let directory: string;
  let memory: MemoryMaker | { unavailable: string };
  let source: Qemu;
  let serial: string;
  let image: ImageName;

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
    image = (channels) => join(directory, `image-${channels}`);
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
    expect(ramDigest(own)).toBe(ramDigest(image(1)));
    rmSync(own);
  });

  test.for(loadsOf(kind))('restored by $name, $channels channels', async (load, context) => {
    await restoreAndRun(kind, available(context), load, image(load.channels), serial);
  });

  if (kind.name.startsWith('file'))
    test.for(WAYS.slice(0, 2))('restored by $name into used memory', async (way, context) => {
      const load: Load = { ...way, content: 'stale', channels: 7 };
      await restoreAndRun(kind, available(context), load, image(load.channels), serial);
    });
});

/** The path of the image that was saved with so many channels. */
type ImageName = (channels: number) => string;

function byMapram(method: string): Way['restore'] {
  return (qemu, image, channels) => {
    const options = ['--method', method, '--channels', String(channels)];
    return succeed(['restore', '--qmp', qemu.socket, ...options, image]);
  };
}

/** Saves by all settings; one image of each channel count stays. */
async function saveByAllSettings(source: Qemu, image: ImageName): Promise<void> {
  let first: string | undefined;
  for (const { channels, engine, direct, copy } of SETTINGS) {
    const path = `${image(channels)}.next`;
    const how = [...(direct ? [] : ['--no-direct']), '--copy', copy];
    const options = ['--channels', String(channels), '--engine', engine, ...how];
    const saved = await succeed(['save', '--qmp', source.socket, ...options, path]);
    expect(saved).toMatchObject({ ok: true, channels, engine, direct });
    const digest = ramDigest(path);
    if (first === undefined) {
      first = digest;
      await expectSameRam(source, path, { canonical: true });
      expectPausedImage(path);
    }
    expect(digest, options.join(' ')).toBe(first);
    renameSync(path, image(channels));
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
  { content, restore, channels }: Load,
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
    await restore(qemu, image, channels);
    await qemu.qmp.waitForStatus('paused');
    await expectSameRam(qemu, image);
    await qemu.qmp.execute('cont');
    await expectGuestRunsOn(qemu, before);
  } finally {
    await cleanup.run();
  }
}
