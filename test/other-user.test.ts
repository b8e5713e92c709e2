import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, chownSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, type TestContext, test } from 'vitest';
import { failWith, succeed } from './support/cli.ts';
import { expectGuestRunsOn, waitForProgram } from './support/console.ts';
import { IS_ROOT } from './support/filesystem.ts';
import { pausedGuest, testCleanup } from './support/fixtures.ts';
import { expectSameRam } from './support/oracle.ts';
import { CLI, diskDirectory } from './support/paths.ts';
import { Qemu, type QemuOptions } from './support/qemu.ts';

const GUEST: QemuOptions = { machine: 'q35', mebibytes: 128, program: 32 };
/** Under KVM, root opens /dev/kvm for QEMU. */
const OF_NOBODY = { ...GUEST, inheritsKvm: true };
const NOBODY = Number(execFileSync('id', ['-u', 'nobody'], { encoding: 'utf8' }));
const AS_NOBODY = ['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups', '--no-new-privs'];

function needRoot(context: TestContext): void {
  if (!IS_ROOT) context.skip('only root can become another user');
}

function needReadableProgram(context: TestContext): void {
  needRoot(context);
  const words = [...AS_NOBODY, process.execPath, CLI, '--version'];
  if (spawnSync(words[0] as string, words.slice(1)).status !== 0)
    context.skip('user nobody cannot run node and mapram where they are installed');
}

describe.each([
  {
    name: '-run-with user=nobody -sandbox on',
    extra: ['-run-with', 'user=nobody', '-sandbox', 'on'],
    prefix: [],
  },
  {
    name: 'started by nobody, with all of -sandbox',
    extra: ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    prefix: AS_NOBODY,
  },
])('QEMU $name', ({ extra, prefix }) => {
  test.for(['fill', 'qemu'])('saved, and restored by %s', async (method, context) => {
    needRoot(context);
    const cleanup = testCleanup();
    const source = await Qemu.start({ ...OF_NOBODY, extra, prefix }, cleanup);
    await waitForProgram(source);
    await source.qmp.execute('stop');
    // The image stands in a directory of ours, mode 0700: QEMU can only be handed descriptors.
    const image = join(diskDirectory(cleanup), 'image');
    await succeed(['save', '--qmp', source.socket, image]);
    await expectSameRam(source, image, { canonical: true });
    const copy = await Qemu.start({ ...OF_NOBODY, extra, prefix, incoming: true, paused: true }, cleanup);
    await succeed(['restore', '--qmp', copy.socket, '--method', method, image]);
    await expectSameRam(copy, image);
    await copy.qmp.execute('cont');
    await expectGuestRunsOn(copy, source.serial());
  });
});

test.for(['fill', 'qemu'])(
  'an ordinary user saves his own QEMU and restores it by %s',
  async (method, context) => {
    needReadableProgram(context);
    const cleanup = testCleanup();
    const directory = diskDirectory(cleanup);
    chownSync(directory, NOBODY, NOBODY);
    const image = join(directory, 'image');
    const source = await Qemu.start({ ...OF_NOBODY, prefix: AS_NOBODY }, cleanup);
    await waitForProgram(source);
    await source.qmp.execute('stop');
    await succeed(['save', '--qmp', source.socket, image], { prefix: AS_NOBODY });
    await expectSameRam(source, image, { canonical: true });
    const copy = await Qemu.start({ ...OF_NOBODY, prefix: AS_NOBODY, incoming: true, paused: true }, cleanup);
    await succeed(['restore', '--qmp', copy.socket, '--method', method, image], { prefix: AS_NOBODY });
    await expectSameRam(copy, image);
  },
);

test('an ordinary user cannot save a QEMU of root, and is told so', async (context) => {
  needReadableProgram(context);
  const cleanup = testCleanup();
  const directory = diskDirectory(cleanup);
  chownSync(directory, NOBODY, NOBODY);
  const qemu = await pausedGuest(cleanup);
  const line = ['save', '--qmp', qemu.socket, join(directory, 'image')];
  chmodSync(qemu.socket, 0o700);
  await failWith(4, 'E_PERMISSION', line, { prefix: AS_NOBODY });
  chmodSync(qemu.socket, 0o777);
  await failWith(4, 'E_PERMISSION', line, { prefix: AS_NOBODY });
  expect(await qemu.qmp.status()).toBe('paused');
});
