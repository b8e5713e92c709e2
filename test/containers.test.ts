import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, type TestContext, test } from 'vitest';
import { failWith, succeed } from './support/cli.ts';
import { SMALL, testCleanup } from './support/fixtures.ts';
import { diskDirectory, LIBRARY } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';

// mapram and QEMU in different pid namespaces, as in containers.

const NEW_NAMESPACE = ['unshare', '--pid', '--fork', '--kill-child'];

function needNamespaces(context: TestContext): void {
  const words = [...NEW_NAMESPACE, '--mount-proc', 'true'];
  if (spawnSync(words[0] as string, words.slice(1)).status !== 0)
    context.skip('this host does not let us make a pid namespace with a /proc of its own');
}

test('memory that is named by a process is not taken from a stranger that has its number elsewhere', (context) => {
  needNamespaces(context);
  const directory = diskDirectory(testCleanup());
  // In the new namespace the program's own number is 1, which on its host's /proc is init's.
  const program = `
    import { save } from ${JSON.stringify(LIBRARY)};
    const memory = [{ name: 'a', length: 4096, pid: process.pid, address: 0x10000 }];
    await save({ memory, machine: 'none', image: ${JSON.stringify(join(directory, 'image'))} }).catch((error) => {
      console.log(process.pid, error.code, error.path);
    });`;
  const [command = '', ...words] = [...NEW_NAMESPACE, process.execPath, '--input-type=module', '-e', program];
  const { stdout, stderr } = spawnSync(command, words, { encoding: 'utf8' });
  expect(stderr).toBe('');
  expect(stdout).toBe('1 E_HOST_UNSUPPORTED /proc\n');
});

describe('a QEMU in a pid namespace of its own', () => {
  test('is found from outside by its socket, and saved', async (context) => {
    needNamespaces(context);
    const cleanup = testCleanup();
    const qemu = await Qemu.start({ ...SMALL, prefix: NEW_NAMESPACE }, cleanup);
    const image = join(diskDirectory(cleanup), 'image');
    await succeed(['save', '--qmp', qemu.socket, image]);
    expect((await succeed(['inspect', image])).ok).toBe(true);
    expect(await qemu.qmp.status()).toBe('paused');
  });
});

describe('mapram in a pid namespace of its own', () => {
  test.for([
    ['a /proc of its own', ['--mount-proc'], 5, 'E_GUEST_UNSUPPORTED', /not visible here/],
    ["its host's /proc", [], 4, 'E_HOST_UNSUPPORTED', /\/proc is of another pid namespace/],
  ] as const)('with %s says so, and not that the guest has gone', async (row, context) => {
    needNamespaces(context);
    const [, words, status, code, message] = row;
    const cleanup = testCleanup();
    const qemu = await Qemu.start(SMALL, cleanup);
    const options = { prefix: [...NEW_NAMESPACE, ...words] };
    const line = ['save', '--qmp', qemu.socket, join(diskDirectory(cleanup), 'image')];
    const failure = await failWith(status, code, line, options);
    expect(failure.error?.message).toMatch(message);
    expect(failure.guestState).toBe('untouched');
    const named = await failWith(
      status === 4 ? 4 : 5,
      status === 4 ? code : 'E_GUEST_MISMATCH',
      [...line, '--pid', String(qemu.pid)],
      options,
    );
    expect(named.guestState).toBe('untouched');
    expect(await qemu.qmp.status()).toBe('running');
  });
});
