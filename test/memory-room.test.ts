import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { failWith, succeed } from './support/cli.ts';
import { IS_ROOT, tmpfs } from './support/filesystem.ts';
import { largeGuest, testCleanup } from './support/fixtures.ts';
import { expectSameRam } from './support/oracle.ts';
import { diskDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';

const MEBIBYTES = 64;

test.for(['fill', 'qemu'])(
  'a tmpfs that cannot take the memory is found out before method %s writes anything',
  async (method, context) => {
    if (!IS_ROOT) context.skip('mounting a tmpfs of its own needs root');
    const cleanup = testCleanup();
    const source = await largeGuest(cleanup, MEBIBYTES);
    const image = join(diskDirectory(cleanup), 'image');
    await succeed(['save', '--qmp', source.socket, image]);

    const small = tmpfs(cleanup, MEBIBYTES / 2);
    const file = join(small, 'ram');
    const backend = `memory-backend-file,id=ram0,size=${MEBIBYTES}M,mem-path=${file},share=on`;
    const options = { machine: 'q35', mebibytes: MEBIBYTES, memory: ['-object', backend] } as const;
    const copy = await Qemu.start({ ...options, memory: [...options.memory], incoming: true }, cleanup);
    const line = ['restore', '--qmp', copy.socket, '--method', method, '--then', 'pause', image];
    const failure = await failWith(1, 'E_NO_SPACE', line);
    expect(failure).toMatchObject({ guestState: 'untouched', error: { path: file } });
    expect(failure.error?.message).toMatch(/tmpfs of the guest's memory has room for \d+ bytes more/);
    expect(await copy.qmp.status()).toBe('inmigrate');

    execFileSync('mount', ['-o', `remount,size=${MEBIBYTES * 2}m`, small]);
    await succeed(line);
    await expectSameRam(copy, image);
  },
);
