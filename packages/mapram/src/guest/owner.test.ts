import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createConnection, createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { MapramError } from '../errors.ts';
import { inspect } from '../inspect.ts';
import { ImageFile } from '../native.ts';
import { restore } from '../restore.ts';
import { save } from '../save.ts';
import { MessageSplitter } from './message-splitter.ts';
import type { Monitor } from './monitor.ts';
import { takeDescriptors } from './no-descriptors.fixture.ts';
import { connect, interpose, type SmallQemu, startQemu, stateOf, tell } from './qemu.fixture.ts';
import { QmpClient } from './qmp.ts';

// How a guest is left when things go wrong around it: by save.ts and restore.ts, with a real QEMU.

afterEach(() => vi.restoreAllMocks());

function guestOf(qemu: SmallQemu): { guest: { qmp: string }; image: string } {
  return { guest: { qmp: qemu.socket }, image: join(qemu.directory, 'image') };
}

/** Has the next bytes that come from a QMP socket be no QMP, once the guest has stopped. */
async function garbleAfterStop(qemu: SmallQemu): Promise<void> {
  const watcher = await QmpClient.connect(qemu.otherSocket);
  watcher.events.on('STOP', () => {
    watcher.close();
    vi.spyOn(MessageSplitter.prototype, 'push').mockReturnValueOnce(['no QMP']);
  });
}

/** Has the connection lost when `at` is given, and another QEMU listen on the socket's path from then on. */
function replaceAt(at: string, qemu: SmallQemu, other: SmallQemu, then?: () => void): void {
  const execute = QmpClient.prototype.execute;
  let isDone = false;
  vi.spyOn(QmpClient.prototype, 'execute').mockImplementation(function (this: QmpClient, command, ...rest) {
    if (command === at && !isDone) {
      isDone = true;
      renameSync(other.socket, qemu.socket);
      this.close();
      then?.();
    }
    return execute.call(this, command, ...rest);
  });
}

/** The connections that are made from now on, which a test may close. */
function closable(): QmpClient[] {
  const connections: QmpClient[] = [];
  const connect = QmpClient.connect.bind(QmpClient);
  vi.spyOn(QmpClient, 'connect').mockImplementation(async (...args) => {
    const client = await connect(...args);
    connections.push(client);
    return client;
  });
  return connections;
}

describe('a connection that is lost while another QEMU has taken the path of the socket', () => {
  it.each([
    {
      own: [],
      other: ['-S'],
      before: 'prelaunch',
      left: 'paused',
      message: /could not be resumed: the connection to QEMU was lost for good: .* is not this guest's QEMU/,
    },
    { own: ['-S'], other: [], before: 'running', left: 'prelaunch', message: /connection was closed/ },
  ])(
    'lets neither that one run nor be taken for the guest: it is $before',
    async (guests) => {
      const [qemu, other] = await Promise.all([startQemu(...guests.own), startQemu(...guests.other)]);
      replaceAt('xen-save-devices-state', qemu, other);
      const message = expect.stringMatching(guests.message);
      await expect(save(guestOf(qemu))).rejects.toMatchObject({ guestState: 'paused', message });
      expect([await stateOf(qemu), await stateOf(other)]).toEqual([guests.left, guests.before]);
    },
    60_000,
  );

  it('has nothing but the guest itself quit', async () => {
    const [qemu, other] = await Promise.all([startQemu(), startQemu()]);
    // It ends as slowly as one with much memory.
    replaceAt('quit', qemu, other, () => setTimeout(() => qemu.child.kill('SIGKILL'), 500));
    expect(await save({ ...guestOf(qemu), then: 'quit' })).toMatchObject({ guestState: 'gone' });
    expect(await stateOf(other)).toBe('running');
  });
});

describe('a save that fails', () => {
  it('puts the guest back with no descriptor left', async () => {
    const qemu = await startQemu();
    let asked = 0;
    let free = (): void => {};
    // The second time it is asked, the guest stands still, and nothing is held that a failure would give up.
    const monitor = interpose(await connect(qemu), 'x-query-ramblock', () => {
      asked += 1;
      if (asked === 1) return;
      free = takeDescriptors();
      throw new Error('no');
    });
    const error: unknown = await save({ ...guestOf(qemu), guest: { monitor } }).catch((thrown) => thrown);
    free();
    expect(asked).toBe(2);
    expect(error).toMatchObject({ code: 'E_QMP', guestState: 'running' });
    expect(await stateOf(qemu)).toBe('running');
  });

  it('is refused before the guest is stopped if there is no descriptor to know its process by', async () => {
    const qemu = await startQemu();
    const client = await connect(qemu);
    const seen: string[] = [];
    let free = (): void => {};
    const execute: Monitor['execute'] = async (command, ...rest) => {
      const answer = await client.execute(command, ...rest);
      seen.push(command);
      // Gone before the pidfd is opened, which comes after the process was verified.
      if (command === 'remove-fd') free = takeDescriptors();
      return answer;
    };
    const failed = save({ ...guestOf(qemu), guest: { monitor: { events: client.events, execute } } });
    const error: unknown = await failed.catch((thrown) => thrown);
    free();
    expect(error).toMatchObject({ code: 'E_HOST_UNSUPPORTED', guestState: 'untouched' });
    expect(seen).not.toContain('stop');
    expect(await stateOf(qemu)).toBe('running');
  });

  it('puts the guest back over a new connection when the old one is lost', async () => {
    const qemu = await startQemu();
    await garbleAfterStop(qemu);
    await expect(save(guestOf(qemu))).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'running',
      message: expect.stringContaining('does not speak QMP'),
    });
    expect(await stateOf(qemu)).toBe('running');
    expect(existsSync(guestOf(qemu).image)).toBe(false);
  });

  it('does not take a QEMU for gone that closes the connection', async () => {
    const qemu = await startQemu();
    const client = await QmpClient.connect(qemu.socket);
    const monitor = interpose(client, 'xen-save-devices-state', () => {
      throw new MapramError('E_GUEST_GONE', 'QEMU closed the QMP connection');
    });
    await expect(save({ ...guestOf(qemu), guest: { monitor } })).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'running',
      message: expect.stringContaining('its process lives'),
    });
    client.close();
  }, 20_000);

  it('does not take a relay that closes the connection for a QEMU that has ended', async () => {
    const qemu = await startQemu();
    const path = join(qemu.directory, 'relay');
    const relay = createServer((socket) => {
      const onward = createConnection(qemu.socket);
      socket.on('data', (chunk) => {
        if (chunk.includes('query-cpus-fast')) onward.destroy();
        else onward.write(chunk);
      });
      onward.pipe(socket).on('error', () => {});
      onward.on('error', () => {}).on('close', () => socket.destroy());
    }).listen(path);
    onTestFinished(() => void relay.close());
    await expect(save({ ...guestOf(qemu), guest: { qmp: path } })).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'untouched',
    });
    expect(await stateOf(qemu)).toBe('running');
  }, 20_000);

  it('waits for the end of a QEMU that takes long to give up its memory', async () => {
    const qemu = await startQemu('-S');
    const monitor = interpose(await connect(qemu), 'xen-save-devices-state', () => {
      qemu.child.kill('SIGSTOP');
      setTimeout(() => qemu.child.kill('SIGKILL'), 12_000);
      // As the engine says it of a process whose memory has gone first.
      throw new MapramError('E_GUEST_GONE', 'process has ended');
    });
    await expect(save({ ...guestOf(qemu), guest: { monitor } })).rejects.toMatchObject({
      code: 'E_GUEST_GONE',
      guestState: 'gone',
    });
  }, 30_000);

  it.each([0, 500])(
    'that is cancelled while QEMU stands still does not wait for it: after %i ms',
    async (delayMs) => {
      const qemu = await startQemu();
      const controller = new AbortController();
      const monitor = interpose(await connect(qemu), 'remove-fd', () => {
        qemu.child.kill('SIGSTOP');
        if (delayMs === 0) controller.abort(new Error('enough'));
        else setTimeout(() => controller.abort(new Error('enough')), delayMs);
      });
      const since = performance.now();
      const job = save({ ...guestOf(qemu), guest: { monitor }, signal: controller.signal });
      await expect(job).rejects.toThrow('enough');
      expect(performance.now() - since).toBeLessThan(10_000);
      expect(job.guestState).toBe('untouched');
    },
    20_000,
  );

  it('keeps the states of two guests apart whose saves one reason cancels', async () => {
    const [running, paused] = await Promise.all([startQemu(), startQemu('-S')]);
    const reason = Object.freeze(new MapramError('E_CANCELLED', 'enough'));
    const controller = new AbortController();
    let waiting = 0;
    const jobs = await Promise.all(
      [running, paused].map(async (qemu) => {
        const monitor = interpose(await connect(qemu), 'xen-save-devices-state', async () => {
          waiting += 1;
          await vi.waitUntil(() => waiting === 2);
          controller.abort(reason);
        });
        // In an object, for a promise would be waited for.
        return { job: save({ ...guestOf(qemu), guest: { monitor }, signal: controller.signal }) };
      }),
    );
    await Promise.all(jobs.map(({ job }) => expect(job).rejects.toBe(reason)));
    expect(jobs.map(({ job }) => job.guestState)).toEqual(['running', 'paused']);
    expect(reason.guestState).toBeUndefined();
    expect([await stateOf(running), await stateOf(paused)]).toEqual(['running', 'prelaunch']);
  });
});

describe('a restore whose connection is lost', () => {
  async function capabilitiesOf(qemu: SmallQemu): Promise<unknown> {
    const all = (await tell(qemu, ['query-migrate-capabilities'])) as {
      capability: string;
      state: boolean;
    }[];
    return all.filter(({ state }) => state).map(({ capability }) => capability);
  }

  it.each([
    { at: 1, when: 'as QEMU gets its settings', result: { code: 'E_QMP', guestState: 'untouched' } },
    { at: 2, when: 'as it is given its own back', result: { guestState: 'running' } },
  ])(
    'leaves QEMU its own settings: $when',
    async ({ at, result }) => {
      const source = await startQemu();
      const { image } = await save(guestOf(source));
      const qemu = await startQemu('-incoming', 'defer');
      const own = await capabilitiesOf(qemu);
      const execute = QmpClient.prototype.execute;
      let count = 0;
      vi.spyOn(QmpClient.prototype, 'execute').mockImplementation(function (
        this: QmpClient,
        command,
        ...rest
      ) {
        if (command === 'migrate-set-capabilities') count += 1;
        else return execute.call(this, command, ...rest);
        if (count === 2 && at === 2) this.close();
        const answer = execute.call(this, command, ...rest);
        if (count > 1 || at > 1) return answer;
        // QEMU has got it, and nobody hears so.
        return answer.then(() => {
          this.close();
          return this.execute('query-status');
        });
      });
      const job = restore({ guest: { qmp: qemu.socket }, image, method: 'qemu' });
      const outcome: unknown = await job.catch((error: unknown) => error);
      vi.restoreAllMocks();
      expect(outcome).toMatchObject(result);
      expect(count).toBeGreaterThan(at);
      expect(await capabilitiesOf(qemu)).toEqual(own);
    },
    60_000,
  );
});

/** A caller's monitor that leads to `other` once the guest's process was killed, at the given command. */
async function reconnecting(at: string, count: number, qemu: SmallQemu, other: SmallQemu) {
  const clients = [await connect(qemu), await connect(other)];
  let given = 0;
  const sent: string[] = [];
  const execute: Monitor['execute'] = async (command, ...rest) => {
    if (command === at) given += 1;
    if (command === at && given === count) {
      qemu.child.kill('SIGKILL');
      await new Promise((resolve) => qemu.child.once('exit', resolve));
    }
    const isOver = given >= count;
    if (isOver) sent.push(command);
    return (clients[isOver ? 1 : 0] as QmpClient).execute(command, ...rest);
  };
  return { sent, guest: { monitor: { events: (clients[0] as QmpClient).events, execute } } };
}

describe("a caller's monitor that connects to another QEMU when the guest's has ended", () => {
  it.each([
    ['pause', [], 'xen-save-devices-state', 1, 'prelaunch'],
    ['quit', ['-S'], 'query-status', 6, 'prelaunch'],
  ] as const)(
    'does not make a save touch that one: then %s',
    async (then, own, at, count, left) => {
      const [qemu, other] = await Promise.all([startQemu(...own), startQemu('-S')]);
      const { guest, sent } = await reconnecting(at, count, qemu, other);
      const outcome = await save({ ...guestOf(qemu), guest, then }).catch((error: unknown) => error);
      expect(outcome).toMatchObject({ guestState: 'gone' });
      expect(sent).toEqual([at]);
      expect(await stateOf(other)).toBe(left);
    },
    20_000,
  );

  it.each(['stop', 'migrate-incoming', 'query-migrate'])(
    'does not make a restore load, or wait for, anything there: from %s on',
    async (at) => {
      const source = await startQemu();
      const { image } = await save(guestOf(source));
      const [qemu, other] = await Promise.all([1, 2].map(() => startQemu('-incoming', 'defer')));
      const count = at === 'query-migrate' ? 3 : 1;
      const { guest } = await reconnecting(at, count, qemu as SmallQemu, other as SmallQemu);
      await expect(restore({ guest, image })).rejects.toMatchObject({ guestState: 'gone' });
    },
    20_000,
  );
});

describe('a guest that someone else has to do with meanwhile', () => {
  it.each(['pause', 'resume', 'quit'] as const)(
    'is not let run again once it was migrated away: then %s',
    async (then) => {
      const qemu = await startQemu();
      const path = join(qemu.directory, 'migration');
      const elsewhere = await startQemu('-incoming', `unix:${path}`);
      const monitor = interpose(await connect(qemu), 'xen-save-devices-state', async () => {
        await tell(qemu, ['migrate', { uri: `unix:${path}` }]);
        await expect.poll(() => stateOf(qemu), { timeout: 10_000 }).toBe('postmigrate');
      });
      await expect(save({ ...guestOf(qemu), guest: { monitor }, then })).rejects.toMatchObject({
        code: 'E_GUEST_RAN',
        guestState: 'paused',
        message: expect.stringContaining('omeone else has migrated the guest'),
      });
      expect(await stateOf(qemu)).toBe('postmigrate');
      expect(existsSync(guestOf(qemu).image)).toBe(false);
      elsewhere.child.kill('SIGKILL');
    },
    20_000,
  );

  it.each([
    { at: 'x-query-ramblock', when: 'while the image is prepared', state: 'untouched' },
    { at: 'stop', when: 'right before it is stopped', state: 'paused' },
  ])(
    'is neither published nor let run if it was migrated away $when',
    async ({ at, state }) => {
      for (const then of ['pause', 'resume', 'quit'] as const) {
        const qemu = await startQemu();
        const path = join(qemu.directory, 'migration');
        const elsewhere = await startQemu('-incoming', `unix:${path}`);
        let isDone = false;
        const monitor = interpose(await connect(qemu), at, async () => {
          if (isDone) return;
          isDone = true;
          await tell(qemu, ['migrate', { uri: `unix:${path}` }]);
          await expect.poll(() => stateOf(qemu), { timeout: 10_000 }).toBe('postmigrate');
        });
        await expect(save({ ...guestOf(qemu), guest: { monitor }, then })).rejects.toMatchObject({
          code: 'E_GUEST_RAN',
          guestState: state,
          message: 'Someone else has migrated the guest since the save began (it is postmigrate)',
        });
        expect([await stateOf(qemu), await stateOf(elsewhere)]).toEqual(['postmigrate', 'running']);
        expect(existsSync(guestOf(qemu).image)).toBe(false);
      }
    },
    60_000,
  );

  it.each(['fill', 'qemu'] as const)(
    'is not let run after a restore if it was migrated away since its load: by %s',
    async (method) => {
      const source = await startQemu();
      const { image } = await save(guestOf(source));
      const qemu = await startQemu('-incoming', 'defer');
      const path = join(qemu.directory, 'migration');
      await startQemu('-incoming', `unix:${path}`);
      const monitor = interpose(await connect(qemu), 'cont', () => {
        throw new Error('cont');
      });
      const away = interpose(monitor, 'remove-fd', async () => {
        if ((await stateOf(qemu)) !== 'paused') return;
        await tell(qemu, ['migrate', { uri: `unix:${path}` }]);
        await expect.poll(() => stateOf(qemu), { timeout: 10_000 }).toBe('postmigrate');
      });
      await expect(restore({ guest: { monitor: away }, image, method })).rejects.toMatchObject({
        code: 'E_GUEST_RAN',
        guestState: 'paused',
        message: expect.stringMatching(/restored in full, but.*Someone else has migrated the guest/),
      });
      expect(await stateOf(qemu)).toBe('postmigrate');
    },
    20_000,
  );

  it('is saved where QEMU itself had migrated it before', async () => {
    const qemu = await startQemu();
    await tell(qemu, ['migrate', { uri: `exec:cat > /dev/null` }]);
    await expect.poll(() => stateOf(qemu), { timeout: 10_000 }).toBe('postmigrate');
    expect(await save({ ...guestOf(qemu), then: 'resume' })).toMatchObject({ guestState: 'running' });
  }, 20_000);

  it('is not let run again either where QEMU does not say any more that it was migrated away', async () => {
    const qemu = await startQemu();
    const path = join(qemu.directory, 'migration');
    await startQemu('-incoming', `unix:${path}`);
    const client = await connect(qemu);
    let isSeen = false;
    const execute: Monitor['execute'] = async (command, ...rest) => {
      if (isSeen && command === 'query-status') throw new Error('no answer in time');
      if (command === 'xen-save-devices-state') {
        await tell(qemu, ['migrate', { uri: `unix:${path}` }]);
        await expect.poll(() => stateOf(qemu), { timeout: 10_000 }).toBe('postmigrate');
      }
      const answer = await client.execute(command, ...rest);
      if (command === 'query-status') isSeen = (answer as { status: string }).status === 'postmigrate';
      return answer;
    };
    const guest = { monitor: { events: client.events, execute } };
    await expect(save({ ...guestOf(qemu), guest })).rejects.toMatchObject({ code: 'E_GUEST_RAN' });
    expect(await stateOf(qemu)).toBe('postmigrate');
  }, 30_000);

  it('is saved by one job at a time', async () => {
    const qemu = await startQemu();
    let second: Promise<unknown> | undefined;
    const monitor = interpose(await connect(qemu), 'xen-save-devices-state', async () => {
      second ??= save({ guest: { qmp: qemu.otherSocket }, image: join(qemu.directory, 'second') });
      await second.catch(() => {});
    });
    await save({ ...guestOf(qemu), guest: { monitor } });
    await expect(second).rejects.toMatchObject({ code: 'E_TARGET_BUSY', guestState: 'untouched' });
    await save({ guest: { qmp: qemu.otherSocket }, image: join(qemu.directory, 'third') });
  }, 20_000);

  it('is not saved with memory that was plugged while it stood', async () => {
    const qemu = await startQemu('-m', '16,slots=1,maxmem=1G');
    const monitor = interpose(await connect(qemu), 'xen-save-devices-state', () =>
      tell(
        qemu,
        ['object-add', { 'qom-type': 'memory-backend-ram', id: 'more', size: 128 * 2 ** 20 }],
        ['device_add', { driver: 'pc-dimm', id: 'dimm', memdev: 'more' }],
      ),
    );
    await expect(save({ ...guestOf(qemu), guest: { monitor } })).rejects.toMatchObject({
      code: 'E_GUEST_RAN',
      guestState: 'running',
    });
  });
});

describe('a save whose image is published', () => {
  /** Has `act` called between the image's getting its name and the end of that. */
  function whenPublished(act: () => Promise<unknown>): void {
    const publish = ImageFile.prototype.publish;
    vi.spyOn(ImageFile.prototype, 'publish').mockImplementation(function (this: ImageFile) {
      const job = publish.call(this);
      const run = job.run.bind(job);
      job.run = async () => {
        const result = await run();
        await act();
        return result;
      };
      return job;
    });
  }

  it.each([
    { commands: ['cont'], state: 'running' },
    { commands: ['cont', 'stop'], state: 'paused' },
  ])('does not end a guest that someone else gives $commands meanwhile', async ({ commands, state }) => {
    const qemu = await startQemu();
    whenPublished(() => tell(qemu, ...commands.map((command): [string] => [command])));
    await expect(save({ ...guestOf(qemu), then: 'quit' })).rejects.toMatchObject({
      code: 'E_GUEST_RAN',
      guestState: state,
      message: expect.stringContaining('The image is whole and in its place'),
    });
    expect(await stateOf(qemu)).toBe(state);
  });

  it('does not end a guest that nobody could see for a while', async () => {
    const qemu = await startQemu();
    whenPublished(async () => {
      for (const connection of connections) connection.close();
      await tell(qemu, ['cont'], ['stop']);
    });
    const connections = closable();
    await expect(save({ ...guestOf(qemu), then: 'quit' })).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'paused',
      message: expect.stringMatching(/image is whole.*connection to QEMU was lost.*was not ended/),
    });
    expect(await stateOf(qemu)).toBe('paused');
  }, 30_000);

  it('says soon that QEMU did not get the command to quit', async () => {
    const qemu = await startQemu();
    const execute = QmpClient.prototype.execute;
    vi.spyOn(QmpClient.prototype, 'execute').mockImplementation(function (this: QmpClient, command, ...rest) {
      if (command === 'quit') this.close();
      return execute.call(this, command, ...rest);
    });
    await expect(save({ ...guestOf(qemu), then: 'quit' })).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'paused',
      message: expect.stringMatching(/image is whole.*QEMU could not be ended/),
    });
    expect(await stateOf(qemu)).toBe('paused');
  }, 30_000);

  it.each(['pause', 'quit'] as const)('says that the guest is gone if QEMU dies then: %s', async (then) => {
    const qemu = await startQemu();
    whenPublished(async () => qemu.child.kill('SIGKILL'));
    expect(await save({ ...guestOf(qemu), then })).toMatchObject({ guestState: 'gone' });
  });

  it('does not let the guest run when only the last sync of it fails', async () => {
    const qemu = await startQemu();
    whenPublished(async () => {
      throw new MapramError('E_IO', 'syncing the directory failed');
    });
    await expect(save(guestOf(qemu))).rejects.toMatchObject({
      code: 'E_IO',
      guestState: 'paused',
      message: 'The image is whole and may be in its place, but syncing the directory failed',
    });
    expect(await stateOf(qemu)).toBe('paused');
  });

  it('does not let the guest run when QEMU does not quit', async () => {
    const qemu = await startQemu();
    const monitor = interpose(await connect(qemu), 'quit', () => {
      throw new MapramError('E_QMP', 'QEMU refused the QMP command quit: no');
    });
    await expect(save({ ...guestOf(qemu), guest: { monitor }, then: 'quit' })).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'paused',
      message: expect.stringMatching(/image is whole.*could not be ended.*quit: no/),
    });
    expect(await stateOf(qemu)).toBe('paused');
    expect((await inspect(guestOf(qemu).image)).runState).toBe('running');
  }, 20_000);

  it('knows that QEMU has quit, whatever a caller’s monitor says to its end', async () => {
    const qemu = await startQemu();
    const client = await connect(qemu);
    const execute: Monitor['execute'] = async (command, ...rest) => {
      if (command !== 'quit') return client.execute(command, ...rest);
      await client.execute(command, ...rest).catch(() => {});
      throw new Error('monitor: end of file');
    };
    const guest = { monitor: { events: client.events, execute } };
    expect(await save({ ...guestOf(qemu), guest, then: 'quit' })).toMatchObject({ guestState: 'gone' });
  });
});

describe('a restore', () => {
  /** An image, and a QEMU that waits for it. */
  async function prepared(state?: string): Promise<{ image: string; qemu: SmallQemu }> {
    const source = await startQemu();
    const { image } = await save(guestOf(source));
    if (state !== undefined) {
      const bytes = readFileSync(image);
      const at = bytes.lastIndexOf('\x0bglobalstate', undefined, 'latin1') + 20;
      bytes.writeUInt32BE(state.length + 1, at);
      bytes.fill(0, at + 4, at + 36).write(state, at + 4);
      writeFileSync(image, bytes);
    }
    return { image, qemu: await startQemu('-incoming', 'defer') };
  }

  it('that is refused for its run state holds nothing of the guest', async () => {
    const { image, qemu } = await prepared('shutdown');
    const monitor = await connect(qemu);
    const open = (): number => readdirSync('/proc/self/fd').length;
    const before = open();
    const refused = restore({ guest: { monitor }, image, then: 'resume' });
    await expect(refused).rejects.toMatchObject({ code: 'E_USAGE', field: 'then' });
    await expect.poll(open).toBe(before);
  });

  it.each(['fill', 'qemu'] as const)(
    'by %s that is cancelled while QEMU is busy with the load does not wait for it',
    async (method) => {
      const { image, qemu } = await prepared();
      const controller = new AbortController();
      const client = await QmpClient.connect(qemu.socket);
      onTestFinished(() => client.close());
      const execute: Monitor['execute'] = (command, args, options) => {
        const answer = client.execute(command, args, options);
        if (command === 'migrate-incoming') {
          qemu.child.kill('SIGSTOP');
          controller.abort(new Error('enough'));
        }
        return answer;
      };
      const guest = { monitor: { events: client.events, execute } };
      const since = performance.now();
      const job = restore({ guest, image, method, signal: controller.signal });
      await expect(job).rejects.toThrow('enough');
      expect(performance.now() - since).toBeLessThan(10_000);
      expect(job.guestState).toBe('unusable');
      qemu.child.kill('SIGCONT');
    },
    30_000,
  );

  it.each(['fill', 'qemu'] as const)(
    'by %s touches no QEMU that another client gives a guest right before',
    async (method) => {
      const { image, qemu } = await prepared();
      const path = join(qemu.directory, 'migration');
      // The last thing before the first write is that QEMU gets the stream.
      const monitor = interpose(await connect(qemu), 'add-fd', async () => {
        await tell(qemu, ['migrate-incoming', { uri: `unix:${path}` }]).catch(() => {});
      });
      await expect(restore({ guest: { monitor }, image, method })).rejects.toMatchObject({
        // QEMU itself may be the first to refuse.
        code: expect.stringMatching(/E_GUEST_UNSUPPORTED|E_QMP/),
        guestState: 'untouched',
      });
    },
  );

  it('of a guest that was migrated away when it was saved lets it run all the same', async () => {
    const { image, qemu } = await prepared('postmigrate');
    const { guestState } = await restore({ ...guestOf(qemu), image, then: 'resume' });
    expect(guestState).toBe('running');
  });

  it('is no success if QEMU has died when all is done', async () => {
    const { image, qemu } = await prepared();
    const client = await connect(qemu);
    let isRunning = false;
    const execute: Monitor['execute'] = async (command, ...rest) => {
      if (isRunning && command === 'query-status') qemu.child.kill('SIGKILL');
      const answer = await client.execute(command, ...rest);
      if (command === 'cont') isRunning = true;
      return answer;
    };
    const guest = { monitor: { events: client.events, execute } };
    await expect(restore({ guest, image, then: 'resume' })).rejects.toMatchObject({
      code: 'E_GUEST_GONE',
      guestState: 'gone',
      message: expect.stringContaining('restored in full'),
    });
  }, 20_000);

  it('is not taken for gone where QEMU does not say how its guest is', async () => {
    const { image, qemu } = await prepared();
    const client = await connect(qemu);
    let isLoaded = false;
    const execute: Monitor['execute'] = async (command, ...rest) => {
      if (isLoaded && command === 'query-status') throw new Error('no answer in time');
      if (command === 'cont') {
        isLoaded = true;
        throw new Error('no cont');
      }
      return client.execute(command, ...rest);
    };
    const guest = { monitor: { events: client.events, execute } };
    await expect(restore({ guest, image, then: 'resume' })).rejects.toMatchObject({
      code: 'E_QMP',
      guestState: 'paused',
      message: expect.stringMatching(/restored in full, but the guest could not be resumed.*no cont/),
    });
    expect(await tell(qemu, ['query-status'])).toMatchObject({ status: 'paused' });
  }, 30_000);
});
