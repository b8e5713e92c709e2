import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, statSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Cleanup } from './support/cleanup.ts';
import { failWith, report, start, succeed } from './support/cli.ts';
import { midSave, SLOWLY, SMALL, testCleanup } from './support/fixtures.ts';
import { diskDirectory, memoryDirectory, QEMU } from './support/paths.ts';
import { Qemu, type QemuOptions } from './support/qemu.ts';

// A guest's own disk belongs to it before, while and after it is saved.

interface BlockNode {
  'node-name': string;
  /** Since QEMU 10.0. */
  active?: boolean;
}

/** A guest with a disk, and what belongs to it. */
interface DiskGuest {
  qemu: Qemu;
  disk: string;
}

function diskOptions(disk: string): string[] {
  const file = `driver=file,node-name=disk0,filename=${disk}`;
  return ['-blockdev', file, '-device', 'virtio-blk-pci,drive=disk0'];
}

async function guestWithDisk(cleanup: Cleanup, options: Partial<QemuOptions> = {}): Promise<DiskGuest> {
  const disk = join(diskDirectory(cleanup), 'disk');
  closeSync(openSync(disk, 'w', 0o666));
  truncateSync(disk, 1 << 20);
  const qemu = await Qemu.start({ ...SMALL, ...options, extra: diskOptions(disk) }, cleanup);
  return { qemu, disk };
}

/** Options for memory that takes long to save: a tmpfs file full of data. */
function slowMemory(cleanup: Cleanup): Partial<QemuOptions> {
  const path = join(memoryDirectory(cleanup), 'memory');
  const file = openSync(path, 'w');
  const piece = Buffer.alloc(16 << 20, 0xa5);
  for (let at = 0; at < 512; at += 16) writeSync(file, piece);
  closeSync(file);
  const memory = ['-object', `memory-backend-file,id=ram0,size=512M,mem-path=${path},share=on`];
  return { mebibytes: 512, memory };
}

/** Whether the disk's nodes are active, which locks QEMU's process has on its file, and whether another QEMU may write to it. */
async function ownership({ qemu, disk }: DiskGuest): Promise<unknown> {
  const nodes = await qemu.qmp.execute<BlockNode[]>('query-named-block-nodes');
  const inode = String(statSync(disk).ino);
  const locks = readFileSync('/proc/locks', 'utf8')
    .split('\n')
    .map((line) => line.split(/\s+/).slice(1))
    .filter((words) => words[4]?.endsWith(`:${inode}`))
    .map((words) => words.join(' '));
  return {
    active: nodes.map((node) => [node['node-name'], node.active]),
    locks: locks.sort(),
    second: secondQemu(disk),
  };
}

/** What a second QEMU on the same disk says when it ends, which it does at once: nobody waits for its monitor. */
function secondQemu(disk: string): string {
  const machine = [
    '-M',
    'q35',
    '-accel',
    'tcg',
    '-nodefaults',
    '-display',
    'none',
    '-S',
    '-monitor',
    'stdio',
  ];
  const ended = spawnSync(QEMU, [...machine, ...diskOptions(disk)], { input: 'quit\n', encoding: 'utf8' });
  return ended.stderr.includes('Failed to get "write" lock') ? 'refused' : 'let in';
}

describe('the disk of a guest', () => {
  test.for([
    { found: 'running', then: 'pause' },
    { found: 'running', then: 'resume' },
    { found: 'paused', then: 'pause' },
    { found: 'paused', then: 'resume' },
  ])('stays its own after a save (found $found, --then $then)', async ({ found, then }) => {
    const cleanup = testCleanup();
    const guest = await guestWithDisk(cleanup);
    const { qmp, socket } = guest.qemu;
    if (found === 'paused') await qmp.execute('stop');
    const before = await ownership(guest);
    expect(before).toMatchObject({ second: 'refused' });
    await succeed(['save', '--qmp', socket, '--then', then, join(diskDirectory(cleanup), 'image')]);
    expect(await ownership(guest)).toEqual(before);
    // A write to an inactive disk would end QEMU.
    await qmp.execute('human-monitor-command', { 'command-line': 'qemu-io disk0 "write 0 4k"' });
    await qmp.execute('cont');
    expect(await qmp.status()).toBe('running');
  });

  test.for(['running', 'paused'])(
    'stays its own in mid-save and after one that failed (found %s)',
    async (found) => {
      const cleanup = testCleanup();
      const guest = await guestWithDisk(cleanup, slowMemory(cleanup));
      if (found === 'paused') await guest.qemu.qmp.execute('stop');
      const before = await ownership(guest);
      const image = join(diskDirectory(cleanup), 'image');
      const save = start(['save', '--qmp', guest.qemu.socket, ...SLOWLY, '--json', image]);
      await midSave(save, image);
      const during = await ownership(guest);
      save.child.kill('SIGINT');
      expect(report(await save.done)).toMatchObject({ ok: false, guestState: found });
      expect(during).toEqual(before);
      expect(await ownership(guest)).toEqual(before);
    },
  );

  test('is taken up by the copy', async () => {
    const cleanup = testCleanup();
    const source = await guestWithDisk(cleanup);
    const image = join(diskDirectory(cleanup), 'image');
    await succeed(['save', '--qmp', source.qemu.socket, '--then', 'quit', image]);
    const options = { ...SMALL, incoming: true, extra: diskOptions(source.disk) };
    const copy = { qemu: await Qemu.start(options, cleanup), disk: source.disk };
    await succeed(['restore', '--qmp', copy.qemu.socket, image]);
    expect(await copy.qemu.qmp.status()).toBe('running');
    expect(await ownership(copy)).toMatchObject({ second: 'refused' });
  });
});

test('a limit on the length of files is found before the guest is stopped', async () => {
  const cleanup = testCleanup();
  const { qemu } = await guestWithDisk(cleanup);
  const seen = qemu.qmp.events.length;
  const image = join(diskDirectory(cleanup), 'image');
  const prefix = ['prlimit', '--fsize=33554432'];
  const failure = await failWith(1, 'E_NO_SPACE', ['save', '--qmp', qemu.socket, image], { prefix });
  expect(failure.guestState).toBe('untouched');
  expect(qemu.qmp.events.slice(seen).map(({ event }) => event)).not.toContain('STOP');
});
