import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { describe, expect, it, onTestFinished, type TestContext } from 'vitest';
import { MapramError } from './errors.ts';
import type { Monitor } from './guest/monitor.ts';
import { connect, interpose, type SmallQemu, startQemu, stateOf, tell } from './guest/qemu.fixture.ts';
import type { GuestRestoreOptions } from './options.ts';
import { restore } from './restore.ts';
import { save } from './save.ts';

const METHODS = ['fill', 'qemu'] as const;

/** The image of a small guest, and a digest of its RAM. */
async function savedImage(...extra: string[]): Promise<{ image: string; ram: string; source: SmallQemu }> {
  const source = await startQemu(...extra);
  const image = join(source.directory, 'image');
  await save({ guest: { qmp: source.socket }, image });
  return { image, ram: await ramOf(source), source };
}

/** Digest of the first 640 KiB; ROM lies over what comes next. */
async function ramOf(qemu: SmallQemu): Promise<string> {
  const filename = join(qemu.directory, 'ram');
  await tell(qemu, ['pmemsave', { val: 0, size: 640 * 1024, filename }]);
  return createHash('sha256').update(readFileSync(filename)).digest('hex');
}

/** A copy of an image that records another run state. */
function recording(image: string, state: string): string {
  const bytes = readFileSync(image);
  const at = bytes.lastIndexOf('\x0bglobalstate', undefined, 'latin1') + 20;
  bytes.writeUInt32BE(state.length + 1, at);
  bytes.fill(0, at + 4, at + 36).write(state, at + 4);
  const path = `${image}-${state}`;
  writeFileSync(path, bytes);
  return path;
}

function waiting(...extra: string[]): Promise<SmallQemu> {
  return startQemu('-incoming', 'defer', ...extra);
}

function restoreInto(qemu: SmallQemu, image: string, options: Partial<GuestRestoreOptions> = {}) {
  return restore({ guest: { qmp: qemu.socket }, image, ...options });
}

/** The files of a directory, seen through a file system in user space, whose server can be killed. */
function fuseMount(context: TestContext, directory: string): { directory: string; kill(): Promise<void> } {
  const mount = mkdtempSync('/var/tmp/mapram-unit-fuse-');
  const server = spawn('unionfs', ['-f', `${directory}=RW`, mount], { stdio: 'ignore' });
  server.once('error', () => {});
  const exit = new Promise<void>((resolve) => server.once('close', () => resolve()));
  const kill = async (): Promise<void> => {
    server.kill('SIGKILL');
    await exit;
  };
  onTestFinished(async () => {
    await kill();
    spawnSync('umount', ['--lazy', mount]);
    rmSync(mount, { recursive: true, force: true });
  });
  const isMounted = (): boolean => readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${mount} `);
  for (let tries = 0; !isMounted(); tries += 1) {
    if (tries === 200) context.skip('no file system can be mounted by unionfs (package unionfs-fuse) here');
    spawnSync('sleep', ['0.01']);
  }
  return { directory: mount, kill };
}

async function settingsOf(qemu: SmallQemu): Promise<unknown> {
  return [await tell(qemu, ['query-migrate-capabilities']), await tell(qemu, ['query-migrate-parameters'])];
}

describe('restore into a guest', () => {
  it.each(METHODS)('brings the memory back by %s', async (method) => {
    const { image, ram } = await savedImage();
    for (const direct of [true, false]) {
      const qemu = await waiting('-S');
      const report = await restoreInto(qemu, image, { method, direct, then: 'pause' });
      expect(report).toMatchObject({ image, method, direct });
      expect(report.durationMs).toBeGreaterThan(0);
      expect(await ramOf(qemu)).toEqual(ram);
      expect(await stateOf(qemu)).toBe('paused');
    }
  });

  it.each(METHODS)('does with %s as the image says, unless told otherwise', async (method) => {
    const { image } = await savedImage();
    const outcomes = await Promise.all(
      ([undefined, 'resume', 'pause'] as const).map(async (then) => {
        const qemu = await waiting('-S');
        await restoreInto(qemu, image, { method, then });
        return stateOf(qemu);
      }),
    );
    expect(outcomes).toEqual(['running', 'running', 'paused']);
  });

  it('pauses exactly by fill, and else leaves a guest that stood in the state that it was in', async () => {
    const { image, source } = await savedImage('-S');
    expect(await stateOf(source)).toBe('prelaunch');
    const states = await Promise.all(
      METHODS.flatMap((method) =>
        ([undefined, 'pause', 'resume'] as const).map(async (then) => {
          const qemu = await waiting();
          await restoreInto(qemu, image, { method, then });
          return stateOf(qemu);
        }),
      ),
    );
    expect(states).toEqual(['prelaunch', 'paused', 'running', 'prelaunch', 'prelaunch', 'running']);
  });

  it('leaves a guest paused whose state no QEMU takes up, and by QEMU’s loader refuses it', async () => {
    const { image } = await savedImage();
    for (const state of ['debug', 'inmigrate', 'finish-migrate', 'colo', 'preconfig', 'nonsense']) {
      const qemu = await waiting();
      const path = recording(image, state);
      await expect(restoreInto(qemu, path, { method: 'qemu' })).rejects.toMatchObject({
        code: 'E_GUEST_UNSUPPORTED',
        guestState: 'untouched',
        message: expect.stringMatching(new RegExp(`run state ${state}.*method fill`)),
      });
      const report = await restoreInto(qemu, path, { method: 'fill' });
      expect(report.guestState).toBe('paused');
      expect(await stateOf(qemu)).toBe('paused');
    }
  });

  it.each(['shutdown', 'io-error', 'watchdog', 'guest-panicked', 'internal-error', 'postmigrate'])(
    'restores a guest that was in state %s into it',
    async (state) => {
      const { image } = await savedImage();
      const qemu = await waiting();
      await restoreInto(qemu, recording(image, state), { method: 'fill' });
      expect(await stateOf(qemu)).toBe(state);
    },
  );

  it.each(METHODS)('lets a guest that slept sleep on when it is continued, by %s', async (method) => {
    const { image } = await savedImage();
    const qemu = await waiting();
    await restoreInto(qemu, recording(image, 'suspended'), { method, then: 'pause' });
    expect(await stateOf(qemu)).toBe('paused');
    await tell(qemu, ['cont']);
    expect(await stateOf(qemu)).toBe('suspended');
  });

  it.each(METHODS)('says how it leaves the guest, by %s', async (method) => {
    const { image } = await savedImage();
    for (const [then, state] of [
      ['resume', 'running'],
      ['pause', 'paused'],
    ] as const) {
      const report = await restoreInto(await waiting(), image, { method, then });
      expect(report.guestState).toBe(state);
    }
  });

  it('takes auto for fill where memory is in reach', async () => {
    const { image } = await savedImage();
    expect((await restoreInto(await waiting(), image)).method).toBe('fill');
  });

  it.each(METHODS)('gives QEMU its settings back after %s', async (method) => {
    const { image } = await savedImage();
    const qemu = await waiting();
    const on = (...names: string[]) => names.map((capability) => ({ capability, state: true }));
    await tell(
      qemu,
      ['migrate-set-capabilities', { capabilities: on('mapped-ram', 'multifd', 'events', 'zero-copy-send') }],
      ['migrate-set-parameters', { 'max-bandwidth': 12345, 'multifd-channels': 3, 'direct-io': true }],
    );
    const before = await settingsOf(qemu);
    await restoreInto(qemu, image, { method, then: 'resume' });
    expect(await settingsOf(qemu)).toEqual(before);
    expect(await tell(qemu, ['query-fdsets'])).toEqual([]);
  });

  it('fills a guest that is set up for what mapped-ram excludes, which only QEMU’s loader minds', async () => {
    const { image } = await savedImage();
    const excluded: [string, [string, Record<string, unknown>]][] = [
      ['xbzrle', ['migrate-set-capabilities', { capabilities: [{ capability: 'xbzrle', state: true }] }]],
      [
        'postcopy-ram',
        ['migrate-set-capabilities', { capabilities: [{ capability: 'postcopy-ram', state: true }] }],
      ],
      ['multifd-compression', ['migrate-set-parameters', { 'multifd-compression': 'zlib' }]],
      ['tls-creds', ['migrate-set-parameters', { 'tls-creds': 'none-such' }]],
    ];
    for (const [name, command] of excluded) {
      const qemu = await waiting();
      await tell(qemu, command);
      const before = await settingsOf(qemu);
      await expect(restoreInto(qemu, image, { method: 'qemu' })).rejects.toMatchObject({
        code: 'E_GUEST_UNSUPPORTED',
        guestState: 'untouched',
        message: expect.stringContaining(name),
      });
      await restoreInto(qemu, image, { method: 'fill' });
      expect(await settingsOf(qemu)).toEqual(before);
    }
  });

  it.each(METHODS)('finds the image at an offset by %s', async (method) => {
    const qemu = await startQemu();
    const embedded = join(qemu.directory, 'embedded');
    // QEMU itself writes the image at an offset; ours always begin files.
    await tell(
      qemu,
      ['stop'],
      ['migrate-set-capabilities', { capabilities: [{ capability: 'mapped-ram', state: true }] }],
      ['migrate', { uri: `file:${embedded},offset=12345` }],
    );
    await expect.poll(() => stateOf(qemu)).toBe('postmigrate');
    const expected = await ramOf(qemu);
    const copy = await waiting('-S');
    await restoreInto(copy, embedded, { method, offset: 12345 });
    expect(await ramOf(copy)).toEqual(expected);
  });

  it('checks the process that it is told', async () => {
    const { image } = await savedImage();
    const [qemu, other] = await Promise.all([waiting('-S'), waiting('-S')]);
    const untouched = await ramOf(other);
    const wrong = restore({ guest: { qmp: qemu.socket, pid: other.pid }, image, method: 'fill' });
    await expect(wrong).rejects.toMatchObject({ code: 'E_GUEST_MISMATCH', guestState: 'untouched' });
    expect(await ramOf(other)).toEqual(untouched);
    await restore({ guest: { qmp: qemu.socket, pid: qemu.pid }, image });
  });

  it('passes the stream through a file where the monitor passes no descriptors', async () => {
    const { image, ram } = await savedImage();
    const qemu = await waiting('-S');
    const client = await connect(qemu);
    const monitor = {
      events: client.events,
      execute: (command: string, args = {}) => client.execute(command, args),
    };
    const scratchFile = join(qemu.directory, 'scratch');
    await expect(restore({ guest: { monitor, scratchFile }, image, method: 'qemu' })).rejects.toMatchObject({
      code: 'E_USAGE',
      field: 'method',
    });
    await restore({ guest: { monitor, scratchFile }, image, then: 'pause' });
    expect(await ramOf(qemu)).toEqual(ram);
    expect(existsSync(scratchFile)).toBe(false);
  });
});

describe('restore that is refused', () => {
  it('reads the image before it looks for QEMU', async () => {
    const { image, source } = await savedImage();
    const truncated = join(source.directory, 'truncated');
    copyFileSync(image, truncated);
    truncateSync(truncated, 5_000_000);
    const guest = { qmp: join(source.directory, 'none.sock') };
    await expect(restore({ guest, image: truncated })).rejects.toMatchObject({
      code: 'E_IMAGE_INVALID',
      path: truncated,
    });
    await expect(restore({ guest, image })).rejects.toMatchObject({ code: 'E_NOT_FOUND', path: guest.qmp });
  });

  it('needs a QEMU that waits', async () => {
    const { image, source } = await savedImage();
    await expect(restoreInto(source, image)).rejects.toMatchObject({
      code: 'E_GUEST_UNSUPPORTED',
      guestState: 'untouched',
      message: expect.stringContaining('it is paused; start it with -incoming defer'),
    });
    const qemu = await waiting();
    await tell(qemu, ['migrate-incoming', { uri: 'file:/dev/null', 'exit-on-error': false }]);
    await expect(restoreInto(qemu, image)).rejects.toMatchObject({
      code: 'E_GUEST_UNSUPPORTED',
      message: expect.stringContaining('has failed'),
    });
  });

  it.each(METHODS)('pauses a guest that ran, without -S too, by %s', async (method) => {
    const { image } = await savedImage();
    const qemu = await waiting();
    await restoreInto(qemu, image, { method, then: 'pause' });
    expect(await stateOf(qemu)).toBe('paused');
  });
});

describe('restore that fails', () => {
  it.each(METHODS)('says that QEMU holds half a guest when its load fails, by %s', async (method) => {
    const { image } = await savedImage('-device', 'virtio-rng-pci');
    const qemu = await waiting('-device', 'virtio-balloon-pci');
    await expect(restoreInto(qemu, image, { method })).rejects.toMatchObject({
      code: 'E_RESTORE_INCOMPLETE',
      guestState: 'unusable',
      message: expect.stringContaining('QEMU could not load the image'),
      cause: expect.any(MapramError),
    });
    expect(await stateOf(qemu)).toBe('inmigrate');
  });

  it.each(METHODS)('never runs a guest that was cancelled, by %s', async (method) => {
    const { image } = await savedImage();
    const qemu = await waiting();
    const reason = new MapramError('E_CANCELLED', 'enough');
    const controller = new AbortController();
    const events = await connect(qemu);
    const monitor = interpose(events, 'query-migrate', () => {
      if (hasBegun) controller.abort(reason);
    });
    let hasBegun = false;
    const noticing = interpose(monitor, 'migrate-incoming', () => {
      hasBegun = true;
    });
    const job = restore({ guest: { monitor: noticing }, image, method, signal: controller.signal });
    await expect(job).rejects.toBe(reason);
    expect(job.guestState).toBe('unusable');
    await expect.poll(() => stateOf(qemu)).toMatch(/^(paused|inmigrate)$/);
  });

  it('leaves QEMU as it was when cancelled before the first write', async () => {
    const { image, ram } = await savedImage();
    const qemu = await waiting();
    const reason = new MapramError('E_CANCELLED', 'enough');
    const controller = new AbortController();
    const monitor = interpose(await connect(qemu), 'query-cpus-fast', () => controller.abort(reason));
    const job = restore({ guest: { monitor }, image, signal: controller.signal });
    await expect(job).rejects.toBe(reason);
    expect(job.guestState).toBe('untouched');
    expect(await tell(qemu, ['query-fdsets'])).toEqual([]);
    await restore({ guest: { monitor }, image, then: 'pause' });
    expect(await ramOf(qemu)).toEqual(ram);
  });

  it.each(METHODS)('says that QEMU died, by %s', async (method) => {
    const { image } = await savedImage();
    const qemu = await waiting();
    const exit = new Promise((resolve) => qemu.child.once('exit', resolve));
    const monitor = interpose(await connect(qemu), 'migrate-incoming', async () => {
      qemu.child.kill('SIGKILL');
      await exit;
    });
    await expect(restore({ guest: { monitor }, image, method })).rejects.toMatchObject({
      code: 'E_RESTORE_INCOMPLETE',
      guestState: 'gone',
    });
  });

  it.for(METHODS)(
    'is not undone by a file system that dies when it is done, by %s',
    async (method, context) => {
      const { image, ram } = await savedImage();
      const qemu = await waiting('-S');
      const served = fuseMount(context, dirname(image));
      const client = await connect(qemu);
      const execute: Monitor['execute'] = async (command, ...rest) => {
        const answer = await client.execute(command, ...rest);
        // QEMU has loaded the image, whose descriptor is still open here: closing it fails.
        if (command === 'query-migrate' && (answer as { status?: string }).status === 'completed')
          await served.kill();
        return answer;
      };
      const guest = { monitor: { events: client.events, execute } };
      const path = join(served.directory, basename(image));
      const report = await restore({ guest, image: path, method, direct: false, then: 'pause' });
      expect(report).toMatchObject({ method, guestState: 'paused' });
      expect(await ramOf(qemu)).toEqual(ram);
    },
  );

  it('says that QEMU holds half a guest where the file system of the image dies', async (context) => {
    const { image } = await savedImage();
    const qemu = await waiting('-S');
    const served = fuseMount(context, dirname(image));
    const monitor = interpose(await connect(qemu), 'migrate-incoming', async () => {
      await served.kill();
      throw new MapramError('E_QMP', 'QEMU refused the QMP command migrate-incoming: no');
    });
    const path = join(served.directory, basename(image));
    await expect(
      restore({ guest: { monitor }, image: path, method: 'fill', direct: false }),
    ).rejects.toMatchObject({
      code: 'E_RESTORE_INCOMPLETE',
      guestState: 'unusable',
      message: expect.stringContaining('migrate-incoming: no'),
    });
  });

  it('leaves a whole guest paused if it cannot be resumed', async () => {
    const { image } = await savedImage();
    const qemu = await waiting('-S');
    const monitor = interpose(await connect(qemu), 'cont', () => {
      throw new MapramError('E_QMP', 'QEMU refused the QMP command cont: disk is locked');
    });
    await expect(restore({ guest: { monitor }, image })).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'paused',
    });
    expect(await stateOf(qemu)).toBe('paused');
  });
});

describe('save and restore of memory that is not QEMU’s', () => {
  it('brings files and processes back', async () => {
    const { source } = await savedImage('-S');
    const [from, to, image] = ['from', 'to', 'own-image'].map((name) => join(source.directory, name)) as [
      string,
      string,
      string,
    ];
    const bytes = Buffer.alloc(8 * 2 ** 20);
    bytes.fill('some data ', 3 * 2 ** 20, 4 * 2 ** 20);
    writeFileSync(from, bytes);
    writeFileSync(to, Buffer.alloc(bytes.length, 0xa5));
    const deviceState = Uint8Array.of(0);
    const block = { name: 'heap', length: bytes.length, pageSize: 4096 };
    const saved = await save({
      image,
      machine: 'my-program-1',
      deviceState,
      memory: [{ ...block, file: from }],
    });
    expect(saved).toMatchObject({ guestBytes: bytes.length, dataBytes: 2 ** 20, pauseMs: 0 });
    const restored = await restore({ image, machine: 'my-program-1', memory: [{ ...block, file: to }] });
    expect(restored).toMatchObject({ machine: 'my-program-1', deviceState, dataBytes: 2 ** 20 });
    expect(readFileSync(to).equals(bytes)).toBe(true);
    const mismatch = { code: 'E_GUEST_MISMATCH' };
    for (const wrong of [{ name: 'stack' }, { length: 2 ** 20 }]) {
      const memory = [{ ...block, file: to, ...wrong }];
      await expect(restore({ image, memory })).rejects.toMatchObject(mismatch);
    }
    const memory = [{ ...block, file: to }];
    await expect(restore({ image, memory, machine: 'other' })).rejects.toMatchObject(mismatch);
  });
});

describe('an image that is the memory itself', () => {
  const backend = (kind: string) => ['-object', `memory-backend-${kind},id=mem,size=16M`];
  const machine = ['-machine', 'memory-backend=mem'];

  it.each(METHODS)('is not overwritten by its own restore: by %s', async (method) => {
    const { image } = await savedImage(...backend('ram'), ...machine);
    const before = readFileSync(image);
    const mapped = backend(`file,mem-path=${image},share=on`);
    const qemu = await waiting(...mapped, ...machine);
    const refused = { code: 'E_USAGE', guestState: 'untouched', path: image, field: 'image' };
    await expect(restoreInto(qemu, image, { method })).rejects.toMatchObject(refused);
    expect(readFileSync(image).equals(before)).toBe(true);
    expect(await stateOf(qemu)).toBe('inmigrate');
  });

  it('is not overwritten where the memory has lost its name', async () => {
    const { directory } = await startQemu('-S');
    const [from, image, mem] = ['from', 'image', 'mem'].map((name) => join(directory, name)) as [
      string,
      string,
      string,
    ];
    const block = { name: 'heap', length: 2 ** 20 };
    writeFileSync(from, Buffer.alloc(block.length, 'data'));
    await save({ image, machine: 'm', memory: [{ ...block, file: from }] });
    linkSync(image, mem);
    const before = readFileSync(image);
    const script =
      'import mmap,os,sys,ctypes,time;f=open(sys.argv[1],"r+b");m=mmap.mmap(f.fileno(),1<<20);os.unlink(sys.argv[1]);print(ctypes.addressof(ctypes.c_char.from_buffer(m)),flush=True);time.sleep(60)';
    const child = spawn('python3', ['-c', script, mem], { stdio: ['ignore', 'pipe', 'inherit'] });
    onTestFinished(() => void child.kill('SIGKILL'));
    const address = Number(await new Promise((resolve) => child.stdout.once('data', resolve)));
    const ended = restore({ image, memory: [{ ...block, pid: child.pid as number, address }] });
    await expect(ended).rejects.toMatchObject({ code: 'E_USAGE', path: image });
    expect(readFileSync(image).equals(before)).toBe(true);
  });

  it('is not overwritten by a restore into a file', async () => {
    const { directory } = await startQemu('-S');
    const [from, image] = ['from', 'image'].map((name) => join(directory, name)) as [string, string];
    const block = { name: 'heap', length: 2 ** 20, pageSize: 4096 };
    writeFileSync(from, Buffer.alloc(block.length, 'data'));
    await save({ image, machine: 'm', memory: [{ ...block, file: from }] });
    const before = readFileSync(image);
    const link = join(directory, 'link');
    symlinkSync(image, link);
    for (const path of [image, link]) {
      const ended = restore({ image: path, memory: [{ ...block, file: image }] });
      await expect(ended).rejects.toMatchObject({ code: 'E_USAGE', path, field: 'image' });
    }
    expect(readFileSync(image).equals(before)).toBe(true);
  });
});
