import { createHash } from 'node:crypto';
import { chmodSync, existsSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { EXIT_STATUS, MapramError } from '../errors.ts';
import { restore } from '../restore.ts';
import { save } from '../save.ts';
import type { MonitoredGuest } from './link.ts';
import { connect, interpose, type SmallQemu, startQemu, stateOf, tell } from './qemu.fixture.ts';

/** Calls of Node's own that a job makes: each is counted, and one of them is refused. */
const calls = vi.hoisted(() => ({ count: 0, refuse: 0, errno: '', refused: '' }));

/** Counts a module's calls, and throws instead of the one that is to be refused. */
const guarded = vi.hoisted(() => (module: Record<string, unknown>, names: string[]) => {
  const guard = (name: string) => {
    const call = module[name] as (...args: unknown[]) => unknown;
    return (...args: unknown[]): unknown => {
      // Whether one of QEMU's many files can be looked at is no matter, as long as another one is the right one.
      if (/^\/proc\/\d+\/fd\/\d+$/.test(String(args[0]))) return call(...args);
      calls.count += 1;
      if (calls.count !== calls.refuse) return call(...args);
      calls.refused = name;
      const { errno: code } = calls;
      const error = Object.assign(new Error(`${code}: refused, ${name}`), { code, syscall: name });
      const callback = args.at(-1);
      if (typeof callback === 'function') return callback(error);
      if (name.endsWith('Sync')) throw error;
      return Promise.reject(error);
    };
  };
  return { ...module, ...Object.fromEntries(names.map((name) => [name, guard(name)])) };
});

vi.mock('node:fs/promises', async (original) =>
  guarded(await original(), ['open', 'readFile', 'rm', 'stat', 'lstat', 'truncate', 'readdir', 'readlink']),
);
vi.mock('node:fs', async (original) =>
  guarded(await original(), ['openSync', 'close', 'readFileSync', 'writeFileSync']),
);

afterEach(() => {
  calls.refuse = 0;
});

const ERRNOS = ['EMFILE', 'EACCES', 'ENOENT', 'EIO'];

/** The guest through a monitor that passes descriptors, or one that does not. */
async function monitored(qemu: SmallQemu, way: 'descriptors' | 'scratch file'): Promise<MonitoredGuest> {
  const client = await connect(qemu);
  if (way === 'descriptors') return { monitor: client };
  const execute = (command: string, args = {}): Promise<unknown> => client.execute(command, args);
  return { monitor: { events: client.events, execute }, scratchFile: join(qemu.directory, 'scratch') };
}

/** Runs a job over and over, each time with another of its calls refused, until it has no more calls. */
async function refuseEach(
  errnos: readonly string[],
  run: () => Promise<unknown>,
  check: (thrown: unknown, refused: string) => Promise<void>,
): Promise<string[]> {
  const refused: string[] = [];
  for (let at = 1; ; at += 1) {
    const errno = errnos[at % errnos.length] as string;
    Object.assign(calls, { count: 0, refuse: at, errno, refused: '' });
    const thrown: unknown = await run().then(
      () => undefined,
      (error: unknown) => error,
    );
    calls.refuse = 0;
    if (calls.refused === '') return refused;
    refused.push(calls.refused);
    await check(thrown, `${errno} at call ${at}, ${calls.refused}`);
  }
}

const OURS = {
  descriptors: ['openSync', 'close', 'readFileSync'],
  'scratch file': ['rm', 'stat', 'readFile'],
};

describe.each(['descriptors', 'scratch file'] as const)('whatever the system refuses (%s)', (way) => {
  it.each(ERRNOS)(
    'a save says so with a code, and leaves the guest as it was: %s',
    async (errno) => {
      const qemu = await startQemu();
      const guest = await monitored(qemu, way);
      const options = { guest, image: join(qemu.directory, 'image'), then: 'resume' as const };
      const before = await tell(qemu, ['query-chardev']);
      let state = 'untouched';
      guest.monitor.events.on('STOP', () => {
        state = 'running';
      });
      const check = async (thrown: unknown, where: string): Promise<void> => {
        if (thrown === undefined) rmSync(options.image);
        else expectRefusal(thrown, where, state);
        expect(await stateOf(qemu), where).toBe('running');
        expect(await tell(qemu, ['query-fdsets']), where).toEqual([]);
        expect(await tell(qemu, ['query-chardev']), where).toEqual(before);
      };
      const run = (): Promise<unknown> => {
        state = 'untouched';
        return save(options);
      };
      const refused = await refuseEach([errno], run, check);
      expect(refused).toEqual(expect.arrayContaining(OURS[way]));
    },
    60_000,
  );

  it('a restore says so with a code before the first write', async () => {
    const source = await startQemu();
    const { image } = await save({ guest: { qmp: source.socket }, image: join(source.directory, 'image') });
    let qemu = await startQemu('-incoming', 'defer');
    let guest = await monitored(qemu, way);
    const check = async (thrown: unknown, where: string): Promise<void> => {
      expect(await stateOf(qemu), where).toBe(thrown === undefined ? 'paused' : 'inmigrate');
      if (thrown !== undefined) return expectRefusal(thrown, where, 'untouched');
      // What was refused, a close say, is no matter to this restore.
      qemu = await startQemu('-incoming', 'defer');
      guest = await monitored(qemu, way);
    };
    const run = (): Promise<unknown> => restore({ guest, image, method: 'fill', then: 'pause' });
    const refused = await refuseEach(ERRNOS, run, check);
    expect(refused).toEqual(expect.arrayContaining(OURS[way].slice(0, 2)));
  }, 60_000);
});

function expectRefusal(thrown: unknown, where: string, state: string): void {
  expect(thrown, where).toBeInstanceOf(MapramError);
  const { code, guestState } = thrown as MapramError;
  expect(Object.keys(EXIT_STATUS), where).toContain(code);
  expect(['E_INTERNAL', 'E_CANCELLED'], where).not.toContain(code);
  expect(guestState, where).toBe(state);
}

it('whatever the system refuses, no save replaces the file that the guest’s memory is in', async () => {
  const image = '/dev/shm/mapram-unit-refused';
  onTestFinished(() => rmSync(image, { force: true }));
  const backend = `memory-backend-file,id=m,size=16M,mem-path=${image},share=on`;
  const qemu = await startQemu('-object', backend, '-machine', 'memory-backend=m');
  const { ino } = statSync(image);
  const guest = await monitored(qemu, 'descriptors');
  const run = (): Promise<unknown> => save({ guest, image, direct: false, force: true });
  await refuseEach(['EMFILE'], run, async (thrown, where) => {
    expect(thrown, where).toBeInstanceOf(MapramError);
    expect(statSync(image).ino, where).toBe(ino);
    expect(await stateOf(qemu), where).toBe('running');
  });
}, 60_000);

describe('a scratch file', () => {
  it('of a QEMU that makes it only after the save was cancelled is removed all the same', async () => {
    const qemu = await startQemu();
    const { scratchFile, monitor } = await monitored(qemu, 'scratch file');
    const controller = new AbortController();
    const busy = interpose(monitor, 'xen-save-devices-state', async () => {
      process.kill(qemu.pid, 'SIGSTOP');
      setTimeout(() => controller.abort(), 100);
      setTimeout(() => process.kill(qemu.pid, 'SIGCONT'), 500);
    });
    const guest = { monitor: busy, scratchFile };
    const options = { guest, image: join(qemu.directory, 'image'), signal: controller.signal };
    await expect(save(options)).rejects.toMatchObject({ name: 'AbortError' });
    expect(await stateOf(qemu)).toBe('running');
    expect(existsSync(scratchFile as string)).toBe(false);
  });

  it('does not keep a cancelled save that QEMU does not take it back from', async () => {
    const qemu = await startQemu();
    const { scratchFile, monitor } = await monitored(qemu, 'scratch file');
    const controller = new AbortController();
    const hung = interpose(monitor, 'chardev-remove', () => {
      controller.abort();
      return new Promise(() => {});
    });
    const since = performance.now();
    const options = { guest: { monitor: hung, scratchFile }, image: join(qemu.directory, 'image') };
    await expect(save({ ...options, signal: controller.signal })).rejects.toMatchObject({
      name: 'AbortError',
    });
    expect(performance.now() - since).toBeLessThan(10_000);
  }, 20_000);

  async function ramOf(qemu: SmallQemu): Promise<string> {
    const filename = join(qemu.directory, 'ram');
    await tell(qemu, ['pmemsave', { val: 0, size: 640 * 1024, filename }]);
    return createHash('sha256').update(readFileSync(filename)).digest('hex');
  }

  it('is QEMU’s own whatever user that runs as, and nobody else’s', async (context) => {
    if (process.getuid?.() !== 0) context.skip('only root can have QEMU become another user');
    const source = await startQemu();
    const { image } = await save({ guest: { qmp: source.socket }, image: join(source.directory, 'image') });
    const qemu = await startQemu('-incoming', 'defer', '-run-with', 'user=nobody');
    chmodSync(qemu.directory, 0o777);
    const { monitor, scratchFile = '' } = await monitored(qemu, 'scratch file');
    let mode = 0;
    const noticing = interpose(monitor, 'migrate-incoming', () => {
      mode = statSync(scratchFile).mode & 0o777;
    });
    await restore({ guest: { monitor: noticing, scratchFile }, image, then: 'pause' });
    expect(mode).toBe(0o600);
    expect(await ramOf(qemu)).toBe(await ramOf(source));
    expect(existsSync(scratchFile)).toBe(false);
  });

  it.each([
    ['E_GUEST_GONE', new MapramError('E_GUEST_GONE', 'QEMU closed the QMP connection')],
    ['E_GUEST_GONE', new Error('end of file')],
  ])('is not blamed for a QEMU that dies over it: %s, %s', async (code, thrown) => {
    const source = await startQemu();
    const { image } = await save({ guest: { qmp: source.socket }, image: join(source.directory, 'image') });
    const qemu = await startQemu('-incoming', 'defer');
    const { monitor, scratchFile = '' } = await monitored(qemu, 'scratch file');
    let isDead = false;
    const dying = {
      events: monitor.events,
      execute: async (command: string, args?: Record<string, unknown>) => {
        if (JSON.stringify(args)?.includes('"in"')) {
          isDead = true;
          // A process that was killed closes its connections some time before it has ended.
          setTimeout(() => qemu.child.kill('SIGKILL'), 300);
        }
        if (isDead) throw thrown;
        return monitor.execute(command, args);
      },
    };
    await expect(restore({ guest: { monitor: dying, scratchFile }, image })).rejects.toMatchObject({
      code,
      guestState: 'gone',
    });
  });

  it('that QEMU cannot read is found before the first write', async () => {
    const source = await startQemu();
    const { image } = await save({ guest: { qmp: source.socket }, image: join(source.directory, 'image') });
    const qemu = await startQemu('-incoming', 'defer');
    const { monitor, scratchFile = '' } = await monitored(qemu, 'scratch file');
    const refusing = {
      events: monitor.events,
      execute: (command: string, args?: Record<string, unknown>) =>
        JSON.stringify(args)?.includes('"in"')
          ? Promise.reject(new Error('Permission denied'))
          : monitor.execute(command, args),
    };
    await expect(restore({ guest: { monitor: refusing, scratchFile }, image })).rejects.toMatchObject({
      code: 'E_PERMISSION',
      path: scratchFile,
      guestState: 'untouched',
    });
    expect(existsSync(scratchFile)).toBe(false);
    await restore({ guest: { monitor, scratchFile }, image });
    expect(await stateOf(qemu)).toBe('running');
  });
});
