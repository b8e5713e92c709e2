import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { failWith, report, run, start, succeed } from './support/cli.ts';
import { largeGuest, midSave, pausedGuest, SLOWLY, SMALL, testCleanup } from './support/fixtures.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';

// The QMP socket in all its shapes. The client's own tests have the rest.

describe('a guest is saved over', () => {
  test.for([
    ['what stands behind -qmp', (qemu: Qemu) => `unix:${qemu.socket},server=on,wait=off`],
    ['an abstract socket', () => `@mapram-abstract-${process.pid}`],
    ['a pretty one', (qemu: Qemu) => join(qemu.directory, 'pretty.sock')],
  ] as const)('%s', async ([, address]) => {
    const cleanup = testCleanup();
    const extra = ['-qmp', `unix:mapram-abstract-${process.pid},abstract=on,server=on,wait=off`];
    const directory = diskDirectory(cleanup);
    const pretty = join(directory, 'pretty.sock');
    extra.push('-qmp-pretty', `unix:${pretty},server=on,wait=off`);
    const qemu = await pausedGuest(cleanup, { extra });
    const image = join(directory, 'image');
    const named = address(qemu);
    await succeed(['save', '--qmp', named.endsWith('pretty.sock') ? pretty : named, image]);
    await expectSameRam(qemu, image, { canonical: true });
  });
});

test('a socket over TCP cannot be used, which is told with what is needed', async () => {
  const directory = diskDirectory(testCleanup());
  const line = ['save', '--qmp', 'tcp:localhost:4444', join(directory, 'image')];
  const failure = await failWith(2, 'E_USAGE', line);
  expect(failure).toMatchObject({ error: { field: 'qmp' }, guestState: 'untouched' });
  expect(failure.error?.message).toMatch(/descriptors.*unix:PATH/);
});

test('a QEMU that freezes in mid-save is told of after seconds, and saved when it goes on', async () => {
  const cleanup = testCleanup();
  const qemu = await largeGuest(cleanup, 256);
  const image = join(diskDirectory(cleanup), 'image');
  const save = start(['save', '--qmp', qemu.socket, ...SLOWLY, '--json', image]);
  let told = '';
  save.child.stderr?.on('data', (text: string) => (told += text));
  await midSave(save, image);
  process.kill(qemu.pid, 'SIGSTOP');
  try {
    for (let tries = 0; !told.includes('has not answered') && tries < 400; tries += 1) await delay(50);
  } finally {
    process.kill(qemu.pid, 'SIGCONT');
  }
  expect(told).toMatch(
    new RegExp(`mapram: QEMU has not answered the QMP command \\S+ for 10 s: process ${qemu.pid} is stopped`),
  );
  expect(report(await save.done)).toMatchObject({ ok: true });
});

test('with few descriptors doctor does not take the process for another one', async () => {
  const cleanup = testCleanup();
  const qemu = await Qemu.start(SMALL, cleanup);
  const texts = [];
  for (const limit of [22, 24, 26, 28]) {
    const result = await run(['doctor', '--qmp', qemu.socket], {
      prefix: ['sh', '-c', `ulimit -n ${limit}; exec "$@"`, 'sh'],
    });
    texts.push(result.stdout + result.stderr);
  }
  expect(texts.join('')).not.toMatch(/is not this guest's|not visible here/);
  expect(texts.join('')).toMatch(/too many open files|Too many open files|EMFILE/);
});
