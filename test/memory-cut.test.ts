import { statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { report, start, succeed } from './support/cli.ts';
import { allocated, largeGuest, midSave, names, SLOWLY, testCleanup } from './support/fixtures.ts';
import { diskDirectory, memoryDirectory } from './support/paths.ts';
import { Qemu } from './support/qemu.ts';
import { waitFor } from './support/wait.ts';

// The file of a guest's shared memory is cut under a save and under a restore.

const MEBIBYTES = 512;
const LEFT_BYTES = 48 << 20;

async function memoryPath(qemu: Qemu): Promise<string> {
  return (await qemu.qmp.execute('qom-get', { path: '/objects/ram0', property: 'mem-path' })) as string;
}

test.for(['auto', 'always', 'never'])(
  'memory that is cut in mid-save is no image of zeros, with --copy %s',
  async (copy) => {
    const cleanup = testCleanup();
    const source = await largeGuest(cleanup, MEBIBYTES);
    await source.qmp.execute('stop');
    const directory = diskDirectory(cleanup);
    const image = join(directory, 'image');
    const line = ['save', '--qmp', source.socket, ...SLOWLY, '--copy', copy, '--then', 'quit'];
    const save = start([...line, '--json', image]);
    await midSave(save, image);
    truncateSync(await memoryPath(source), LEFT_BYTES);
    const result = await save.done;
    expect(report(result)).toMatchObject({ ok: false, error: { code: 'E_IO' }, guestState: 'paused' });
    expect(names(directory)).toEqual([]);
    expect(await source.qmp.status()).toBe('paused');
  },
);

test.for(['io-uring', 'blocking'])(
  'memory that is cut in mid-restore is not restored, by %s',
  async (engine) => {
    const cleanup = testCleanup();
    const source = await largeGuest(cleanup, MEBIBYTES);
    const image = join(diskDirectory(cleanup), 'image');
    await succeed(['save', '--qmp', source.socket, '--then', 'quit', image]);
    const file = join(memoryDirectory(cleanup), 'memory');
    const memory = ['-object', `memory-backend-file,id=ram0,size=${MEBIBYTES}M,mem-path=${file},share=on`];
    const copy = await Qemu.start({ machine: 'q35', mebibytes: MEBIBYTES, memory, incoming: true }, cleanup);
    const slowly = ['--channels', '1', '--queue-depth', '1', '--engine', engine];
    const restore = start(['restore', '--qmp', copy.socket, ...slowly, '--method', 'fill', '--json', image]);
    await waitFor('data in the memory', 60_000, () => (allocated(file) > 64 << 20 ? true : undefined), 1);
    truncateSync(file, LEFT_BYTES);
    const result = await restore.done;
    expect(report(result)).toMatchObject({
      ok: false,
      error: { code: 'E_RESTORE_INCOMPLETE', path: file },
      guestState: 'unusable',
    });
    expect(statSync(file).size).toBe(LEFT_BYTES);
  },
);
