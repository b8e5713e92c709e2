import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MapramError } from './errors.ts';
import type { Monitor } from './guest/monitor.ts';
import { connect, interpose, type SmallQemu, startQemu, stateOf, tell } from './guest/qemu.fixture.ts';
import { QmpClient } from './guest/qmp.ts';
import { inspect } from './inspect.ts';
import type { Progress } from './job.ts';
import { save } from './save.ts';

function guestOf(qemu: SmallQemu): { guest: { qmp: string }; image: string } {
  return { guest: { qmp: qemu.socket }, image: join(qemu.directory, 'image') };
}

/** Files of the image's name, whole or partial. */
function imagesOf(qemu: SmallQemu): string[] {
  return readdirSync(qemu.directory).filter((name) => name.startsWith('image'));
}

/** Where the process has mapped a file. */
function addressOf(qemu: SmallQemu, path: string): number {
  const lines = readFileSync(`/proc/${qemu.pid}/maps`, 'utf8').split('\n');
  return Number.parseInt(lines.find((line) => line.endsWith(path)) ?? '', 16);
}

describe('save of a guest', () => {
  it('writes an image and reports what was done', async () => {
    const qemu = await startQemu();
    const report = await save({
      ...guestOf(qemu),
      channels: 2,
      queueDepth: 3,
      engine: 'blocking',
      direct: false,
    });
    const inspected = await inspect(report.image);
    expect(report).toMatchObject({
      channels: 2,
      queueDepth: 3,
      engine: 'blocking',
      direct: false,
      guestBytes: inspected.guestBytes,
      dataBytes: inspected.dataBytes,
      pages: inspected.pages,
      zeroPages: inspected.zeroPages,
    });
    expect(report.guestState).toBe('paused');
    expect(report.blocks.map(({ name }) => name)).toEqual(inspected.blocks.map(({ name }) => name));
    expect(report.pauseMs).toBeGreaterThanOrEqual(report.durationMs);
    expect(report.bytesPerSecond).toBeCloseTo((report.dataBytes * 1000) / report.durationMs);
    expect(inspected).toMatchObject({ machine: 'pc-q35-10.0', runState: 'running' });
    expect(await stateOf(qemu)).toBe('paused');
    expect(await tell(qemu, ['query-fdsets'])).toEqual([]);
  });

  it('lets the guest run before the image is durable, for that needs no guest', async () => {
    const qemu = await startQemu();
    const report = await save({ ...guestOf(qemu), then: 'resume' });
    expect(report.pauseMs).toBeLessThan(report.durationMs);
    expect(report.guestState).toBe('running');
    expect(await stateOf(qemu)).toBe('running');
  });

  it('records the state that it found', async () => {
    const qemu = await startQemu('-S');
    expect((await save(guestOf(qemu))).pauseMs).toBe(0);
    expect((await inspect(guestOf(qemu).image)).runState).toBe('prelaunch');
    expect(await stateOf(qemu)).toBe('prelaunch');
    await tell(qemu, ['cont'], ['stop']);
    await save({ ...guestOf(qemu), force: true, then: 'resume' });
    expect((await inspect(guestOf(qemu).image)).runState).toBe('paused');
    expect(await stateOf(qemu)).toBe('running');
  });

  it('records no migration that has happened', async () => {
    const qemu = await startQemu();
    await tell(qemu, ['migrate', { uri: `file:${join(qemu.directory, 'other')}` }]);
    await expect.poll(() => stateOf(qemu)).toBe('postmigrate');
    await save(guestOf(qemu));
    expect((await inspect(guestOf(qemu).image)).runState).toBe('paused');
  });

  it('records no state that QEMU could not take up', async () => {
    const qemu = await startQemu('-S');
    const client = await connect(qemu);
    const execute: Monitor['execute'] = async (command, ...rest) =>
      command === 'query-status' ? { status: 'debug', running: false } : client.execute(command, ...rest);
    await save({ ...guestOf(qemu), guest: { monitor: { events: client.events, execute } } });
    expect((await inspect(guestOf(qemu).image)).runState).toBe('paused');
  });

  it('records no state where the machine is told to record none', async () => {
    const qemu = await startQemu('-global', 'migration.store-global-state=off');
    await save({ ...guestOf(qemu), then: 'resume' });
    expect((await inspect(guestOf(qemu).image)).runState).toBeUndefined();
    expect(await stateOf(qemu)).toBe('running');
  });

  it('ends QEMU if it shall', async () => {
    const qemu = await startQemu();
    const exit = new Promise((resolve) => qemu.child.once('exit', resolve));
    expect((await save({ ...guestOf(qemu), then: 'quit' })).guestState).toBe('gone');
    expect(await exit).toBe(0);
  });

  it('shows its progress', async () => {
    const qemu = await startQemu();
    const job = save(guestOf(qemu));
    const samples: Progress[] = [];
    for await (const sample of job.progress) samples.push(sample);
    await job;
    expect(samples.at(-1)?.phase).toBe('finish');
    expect(samples.at(-1)?.bytesDone).toBe(samples.at(-1)?.bytesTotal);
  });

  it('runs several at once', async () => {
    const guests = await Promise.all([startQemu(), startQemu()]);
    const reports = await Promise.all(guests.map((qemu) => save({ ...guestOf(qemu), then: 'resume' })));
    expect(reports.map(({ image }) => existsSync(image))).toEqual([true, true]);
  });
});

describe('save that fails', () => {
  it('refuses a target that exists before the guest is stopped', async () => {
    const qemu = await startQemu();
    writeFileSync(guestOf(qemu).image, 'mine');
    const events = await connect(qemu);
    await expect(save({ ...guestOf(qemu), guest: { monitor: events } })).rejects.toMatchObject({
      code: 'E_TARGET_EXISTS',
      guestState: 'untouched',
      path: guestOf(qemu).image,
    });
    expect(await stateOf(qemu)).toBe('running');
    expect(readFileSync(guestOf(qemu).image, 'utf8')).toBe('mine');
  });

  it.each(['stop', 'xen-save-devices-state'])(
    'lets the guest run again when cancelled at %s',
    async (command) => {
      const qemu = await startQemu();
      const reason = new MapramError('E_CANCELLED', 'enough');
      const controller = new AbortController();
      const monitor = interpose(await connect(qemu), command, () => controller.abort(reason));
      const job = save({ ...guestOf(qemu), guest: { monitor }, signal: controller.signal });
      await expect(job).rejects.toBe(reason);
      expect(await stateOf(qemu)).toBe('running');
      expect(job.guestState).toBe('running');
      expect(imagesOf(qemu)).toEqual([]);
      expect(await tell(qemu, ['query-fdsets'])).toEqual([]);
    },
  );

  it('leaves nothing in QEMU whichever command is on its way when it is cancelled', async () => {
    const qemu = await startQemu();
    const client = await connect(qemu);
    const cancelled: string[] = [];
    for (let at = 1; cancelled.length === at - 1; at += 1) {
      const controller = new AbortController();
      let count = 0;
      const execute: Monitor['execute'] = (command, args, options) => {
        count += 1;
        const answer = client.execute(command, args, options);
        if (count === at) {
          cancelled.push(command);
          // By then the command has been sent and not been answered.
          setImmediate(() => controller.abort(new MapramError('E_CANCELLED', 'enough')));
        }
        return answer;
      };
      const monitor = { events: client.events, execute };
      const options = { ...guestOf(qemu), guest: { monitor }, force: true, then: 'resume' as const };
      await save({ ...options, signal: controller.signal }).catch(() => {});
      expect([at, cancelled.at(-1), await tell(qemu, ['query-fdsets'])]).toEqual([at, cancelled.at(-1), []]);
      expect(await stateOf(qemu)).toBe('running');
    }
    expect(cancelled).toContain('add-fd');
    expect(cancelled).toContain('stop');
  });

  it('waits for what takes QEMU long, and for the guest to run again, and lets it be cancelled', async () => {
    const qemu = await startQemu();
    const client = await connect(qemu);
    const limits: Record<string, number | undefined> = {};
    const execute: Monitor['execute'] = (command, args, options) => {
      limits[command] = options?.timeoutMs;
      return client.execute(command, args, options);
    };
    await save({ ...guestOf(qemu), guest: { monitor: { events: client.events, execute } }, then: 'resume' });
    expect(limits).toMatchObject({ stop: 0, 'xen-save-devices-state': 0 });
    expect(limits['cont']).toBeGreaterThan(60_000);
  });

  it('lets the guest run again even if QEMU answers nothing else', async () => {
    const qemu = await startQemu();
    const client = await connect(qemu);
    let isLate = false;
    const execute: Monitor['execute'] = async (command, ...rest) => {
      if (command === 'xen-save-devices-state') isLate = true;
      if (isLate && command !== 'cont') throw new Error('no answer in time');
      return client.execute(command, ...rest);
    };
    const failed = save({ ...guestOf(qemu), guest: { monitor: { events: client.events, execute } } });
    await expect(failed).rejects.toMatchObject({ code: 'E_QMP', guestState: 'running' });
    expect(await stateOf(qemu)).toBe('running');
  }, 30_000);

  it('says so if the guest cannot be put back', async () => {
    const qemu = await startQemu();
    const client = await connect(qemu);
    const execute: Monitor['execute'] = async (command, ...rest) => {
      if (['xen-save-devices-state', 'cont'].includes(command)) throw new Error(`no ${command}`);
      return client.execute(command, ...rest);
    };
    const failed = save({ ...guestOf(qemu), guest: { monitor: { events: client.events, execute } } });
    await expect(failed).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'paused',
      message: expect.stringMatching(/no xen-save-devices-state.*could not be resumed.*no cont/),
    });
  });

  it('leaves a guest paused that someone else paused after it was resumed', async () => {
    const qemu = await startQemu();
    const client = await connect(qemu);
    const reason = new MapramError('E_CANCELLED', 'enough');
    const controller = new AbortController();
    const execute: Monitor['execute'] = async (command, ...rest) => {
      const answer = await client.execute(command, ...rest);
      if (command === 'cont') {
        await tell(qemu, ['stop']);
        controller.abort(reason);
      }
      return answer;
    };
    const guest = { monitor: { events: client.events, execute } };
    const job = save({ ...guestOf(qemu), guest, then: 'resume', signal: controller.signal });
    await expect(job).rejects.toBe(reason);
    expect(job.guestState).toBe('paused');
    expect(await stateOf(qemu)).toBe('paused');
  });

  it('says why it failed even if the partial file cannot be removed, and frees the socket', async (context) => {
    const qemu = await startQemu();
    const directory = join(qemu.directory, 'fixed');
    mkdirSync(directory);
    if (spawnSync('chattr', ['-i', directory]).status !== 0) context.skip('no chattr on this file system');
    const watcher = await QmpClient.connect(qemu.otherSocket);
    watcher.events.on('STOP', () => spawnSync('chattr', ['+i', directory]));
    onTestFinished(() => {
      watcher.close();
      spawnSync('chattr', ['-i', directory]);
    });
    const failed = save({ ...guestOf(qemu), image: join(directory, 'image') });
    await expect(failed).rejects.toMatchObject({ guestState: 'running', path: join(directory, 'image') });
    (await QmpClient.connect(qemu.socket)).close();
  });

  it('does not replace the file that the guest’s memory is in', async () => {
    const image = '/dev/shm/mapram-unit-memory';
    const backend = `memory-backend-file,id=m,size=16M,mem-path=${image},share=on`;
    const qemu = await startQemu('-object', backend, '-machine', 'memory-backend=m');
    onTestFinished(() => rmSync(image, { force: true }));
    await expect(
      save({ guest: { qmp: qemu.socket }, image, direct: false, force: true }),
    ).rejects.toMatchObject({ code: 'E_USAGE', field: 'image', guestState: 'untouched' });
    expect(readdirSync('/dev/shm').filter((name) => name.startsWith('mapram-unit-memory'))).toHaveLength(1);
    const memory = [{ name: 'ram', length: 4096, file: image }];
    for (const source of [
      memory,
      [{ name: 'ram', length: 4096, pid: qemu.pid, address: addressOf(qemu, image) }],
    ]) {
      const program = { memory: source, machine: 'none', image, direct: false, force: true };
      await expect(save(program)).rejects.toMatchObject({ code: 'E_USAGE', field: 'image' });
    }
  });

  it.each([undefined, null, {}, { guest: {}, image: '/i' }, { signal: {}, image: '/i' }])(
    'rejects the options %j, and throws nothing',
    async (options) => {
      const job = save(options as never);
      await expect(job).rejects.toMatchObject({ code: 'E_USAGE' });
    },
  );

  it('leaves a guest paused that was', async () => {
    const qemu = await startQemu();
    await tell(qemu, ['stop']);
    const reason = new MapramError('E_CANCELLED', 'enough');
    const controller = new AbortController();
    const monitor = interpose(await connect(qemu), 'xen-save-devices-state', () => controller.abort(reason));
    const job = save({ ...guestOf(qemu), guest: { monitor }, signal: controller.signal });
    await expect(job).rejects.toBe(reason);
    expect(await stateOf(qemu)).toBe('paused');
    expect(job.guestState).toBe('paused');
  });

  it.each([['cont'], ['system_reset']])('publishes nothing after %s by someone else', async (command) => {
    for (const state of ['running', 'paused']) {
      const qemu = await startQemu();
      if (state === 'paused') await tell(qemu, ['stop']);
      const act = (): Promise<unknown> => tell(qemu, [command]);
      const monitor = interpose(await connect(qemu), 'xen-save-devices-state', act);
      await expect(save({ ...guestOf(qemu), guest: { monitor } })).rejects.toMatchObject({
        code: 'E_GUEST_RAN',
      });
      expect(imagesOf(qemu)).toEqual([]);
    }
  });

  it('says that QEMU died', async () => {
    const qemu = await startQemu();
    const exit = new Promise((resolve) => qemu.child.once('exit', resolve));
    const kill = async (): Promise<void> => {
      qemu.child.kill('SIGKILL');
      await exit;
    };
    const monitor = interpose(await connect(qemu), 'xen-save-devices-state', kill);
    await expect(save({ ...guestOf(qemu), guest: { monitor } })).rejects.toMatchObject({
      code: 'E_GUEST_GONE',
      guestState: 'gone',
    });
    expect(imagesOf(qemu)).toEqual([]);
  });

  it('says that the image is not the matter when the guest cannot be resumed', async () => {
    const qemu = await startQemu();
    const refuse = (): never => {
      throw new MapramError('E_QMP', 'QEMU refused the QMP command cont: no');
    };
    const monitor = interpose(await connect(qemu), 'cont', refuse);
    await expect(save({ ...guestOf(qemu), guest: { monitor }, then: 'resume' })).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'paused',
      message: expect.stringMatching(/image is whole.*could not be resumed/),
    });
    expect((await inspect(guestOf(qemu).image)).runState).toBe('running');
  });
});

describe('save through a monitor of the caller’s', () => {
  it('leaves the connection open and its listeners as they were', async () => {
    const qemu = await startQemu();
    const monitor = await connect(qemu);
    await save({ ...guestOf(qemu), guest: { monitor } });
    expect(monitor.events.eventNames()).toEqual([]);
    expect(await monitor.execute('query-status')).toMatchObject({ status: 'paused' });
  });

  it('needs no descriptors where a file is named', async () => {
    const qemu = await startQemu();
    const client = await connect(qemu);
    const scratchFile = join(qemu.directory, 'scratch');
    const monitor: Monitor = {
      events: client.events,
      execute: (command, args) => client.execute(command, args),
      pid: qemu.pid,
    };
    await save({ ...guestOf(qemu), guest: { monitor, scratchFile } });
    expect((await inspect(guestOf(qemu).image)).runState).toBe('running');
    expect(existsSync(scratchFile)).toBe(false);
  });

  it('refuses a process that is not the guest’s', async () => {
    const qemu = await startQemu();
    const child = spawn('sleep', ['600'], { stdio: 'ignore' });
    onTestFinished(() => void child.kill());
    await delay(10);
    const client = await connect(qemu);
    const monitor = {
      events: client.events,
      execute: client.execute.bind(client),
      pid: child.pid as number,
    };
    await expect(save({ ...guestOf(qemu), guest: { monitor } })).rejects.toMatchObject({
      code: 'E_GUEST_MISMATCH',
      guestState: 'untouched',
    });
  });
});

describe('save where space is short', () => {
  it('counts what is needed truly: zeros need none, and too much data is refused before the guest is stopped', {
    timeout: 20_000,
  }, async (context) => {
    const qemu = await startQemu(
      '-object',
      'memory-backend-ram,id=m,size=64M,prealloc=on',
      '-m',
      '64',
      '-machine',
      'memory-backend=m',
    );
    const small = join(qemu.directory, 'small');
    mkdirSync(small);
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=16m', 'none', small]);
    if (mounted.status !== 0) context.skip('this host does not let us mount a small file system');
    onTestFinished(() => void spawnSync('umount', [small]));
    const image = join(small, 'image');
    const report = await save({ guest: { qmp: qemu.socket }, image, direct: false, then: 'resume' });
    expect(report.guestBytes).toBeGreaterThan(64 * 2 ** 20);
    writeFileSync(join(small, 'ballast'), Buffer.alloc(15 * 2 ** 20));
    const events = await connect(qemu);
    const stops: unknown[] = [];
    events.events.on('STOP', (event) => stops.push(event));
    const again = save({ guest: { monitor: events }, image: `${image}2`, direct: false });
    await expect(again).rejects.toMatchObject({ code: 'E_NO_SPACE', guestState: 'untouched' });
    expect(stops).toEqual([]);
    expect(readdirSync(small).sort()).toEqual(['ballast', 'image']);
  });
});
