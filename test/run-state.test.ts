import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cleanup } from './support/cleanup.ts';
import { succeed } from './support/cli.ts';
import { expectGuestRunsOn, expectUnbrokenCount, waitForProgram } from './support/console.ts';
import { names, pausedGuest, SMALL, testCleanup, waitingQemu } from './support/fixtures.ts';
import { Image } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';
import { waitFor } from './support/wait.ts';

function recordedState(path: string): string {
  const image = new Image(path);
  image.close();
  return image.runState;
}

describe('after a save', () => {
  test.for([
    { found: 'running', then: [], state: 'paused' },
    { found: 'running', then: ['--then', 'pause'], state: 'paused' },
    { found: 'running', then: ['--then', 'resume'], state: 'running' },
    { found: 'paused', then: [], state: 'paused' },
    { found: 'paused', then: ['--then', 'resume'], state: 'running' },
  ])('a $found guest with $then is $state', async ({ found, then, state }) => {
    const cleanup = testCleanup();
    const qemu = found === 'paused' ? await pausedGuest(cleanup) : await Qemu.start(SMALL, cleanup);
    const image = join(diskDirectory(cleanup), 'image');
    await succeed(['save', '--qmp', qemu.socket, ...then, image]);
    expect(await qemu.qmp.status()).toBe(state);
    expect(recordedState(image)).toBe(found);
  });

  test('QEMU has quit with --then quit', async () => {
    const cleanup = testCleanup();
    const qemu = await Qemu.start(SMALL, cleanup);
    const image = join(diskDirectory(cleanup), 'image');
    await succeed(['save', '--qmp', qemu.socket, '--then', 'quit', image]);
    await waitFor('QEMU to end', 60_000, () => (qemu.alive() ? undefined : true));
    expect(qemu.child.exitCode).toBe(0);
    expect(recordedState(image)).toBe('running');
  });

  test('nothing of ours is left in QEMU', async () => {
    const cleanup = testCleanup();
    const qemu = await pausedGuest(cleanup);
    await succeed(['save', '--qmp', qemu.socket, join(diskDirectory(cleanup), 'image')]);
    expect(await qemu.qmp.execute('query-fdsets')).toEqual([]);
  });
});

describe('a running guest with a program', () => {
  test('counts on in the source and in the copy, from one number', async () => {
    const cleanup = testCleanup();
    const options = { machine: 'q35' as const, mebibytes: 128, program: 32 };
    const source = await Qemu.start(options, cleanup);
    await waitForProgram(source);
    const directory = diskDirectory(cleanup);
    const image = join(directory, 'image');
    const saved = await succeed(['save', '--qmp', source.socket, '--then', 'pause', image]);
    const before = source.serial();
    await source.qmp.execute('cont');
    expect(names(directory)).toEqual(['image']);
    expect(saved.pauseMs).toBeGreaterThan(0);

    const copy = await Qemu.start({ ...options, incoming: true }, cleanup);
    await succeed(['restore', '--qmp', copy.socket, image]);
    expect(await copy.qmp.status()).toBe('running');
    await expectGuestRunsOn(copy, before);
    expectUnbrokenCount(source.serial());
  });
});

describe('after a restore', () => {
  const cleanup = new Cleanup();
  const images: Record<string, string> = {};

  beforeAll(async () => {
    const directory = diskDirectory(cleanup);
    const source = await Qemu.start(SMALL, cleanup);
    for (const state of ['running', 'paused']) {
      images[state] = join(directory, state);
      await succeed(['save', '--qmp', source.socket, images[state]]);
    }
  });
  afterAll(() => cleanup.run());

  const cases = ['running', 'paused'].flatMap((saved) =>
    [undefined, 'pause', 'resume'].flatMap((then) =>
      ['fill', 'qemu'].flatMap((method) => [false, true].map((paused) => ({ saved, then, method, paused }))),
    ),
  );

  test.for(cases)(
    'of a $saved image by $method --then $then (-S: $paused)',
    async ({ saved, then, method, paused }) => {
      const qemu = await waitingQemu(testCleanup(), { paused });
      const words = ['restore', '--qmp', qemu.socket, '--method', method];
      const line = [...words, ...(then === undefined ? [] : ['--then', then]), images[saved] as string];
      await succeed(line);
      const running = then === 'resume' || (then === undefined && saved === 'running');
      expect(await qemu.qmp.status()).toBe(running ? 'running' : 'paused');
    },
  );
});
