import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createConnection, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { createMemfd } from '../native.ts';
import { startQemu } from './qemu.fixture.ts';
import { QmpClient } from './qmp.ts';

const GREETING = '{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n';

/** A server that greets, negotiates, and answers the lines that follow as `answer` says. */
async function fakeQemu(
  answer: (message: { id: number; execute: string }, socket: Socket) => void,
): Promise<string> {
  const directory = mkdtempSync('/var/tmp/mapram-unit-');
  const path = join(directory, 'sock');
  const server = createServer((socket) => {
    socket.write(GREETING);
    socket.on('error', () => {});
    let rest = '';
    socket.on('data', (chunk) => {
      const lines = (rest + chunk.toString()).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const message = JSON.parse(line);
        if (message.execute === 'qmp_capabilities') socket.write(`{"return": {}, "id": ${message.id}}\r\n`);
        else answer(message, socket);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  onTestFinished(() => {
    server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  return path;
}

async function connect(path: string, timeoutMs?: number): Promise<QmpClient> {
  const client = await QmpClient.connect(path, { timeoutMs });
  onTestFinished(() => client.close());
  return client;
}

describe('QmpClient with a real QEMU', () => {
  it('asks, and passes refusals on in QEMU’s words', async () => {
    const qemu = await startQemu('-S');
    const client = await connect(qemu.socket);
    expect(await client.execute('query-status')).toMatchObject({ status: 'prelaunch', running: false });
    await expect(client.execute('no-such-command')).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('no-such-command has not been found'),
    });
    await expect(client.execute('qom-get', { path: '/none', property: 'x' })).rejects.toMatchObject({
      code: 'E_QMP',
    });
    expect(await client.execute('query-name')).toEqual({});
  });

  it('answers commands that are given at once in their order', async () => {
    const qemu = await startQemu('-S');
    const client = await connect(qemu.socket);
    const commands = ['query-status', 'query-kvm', 'query-uuid', 'query-name', 'query-fdsets'];
    const answers = await Promise.all(commands.map((command) => client.execute(command)));
    expect(answers).toMatchObject([
      { status: 'prelaunch' },
      { enabled: false },
      { UUID: expect.any(String) },
      {},
      [],
    ]);
  });

  it('emits events', async () => {
    const qemu = await startQemu('-S');
    const client = await connect(qemu.socket);
    const seen: string[] = [];
    for (const name of ['RESUME', 'STOP', 'RESET']) client.events.on(name, ({ event }) => seen.push(event));
    await client.execute('cont');
    await client.execute('stop');
    await client.execute('system_reset');
    await client.execute('query-status');
    expect(seen).toEqual(['RESUME', 'STOP', 'RESET']);
  });

  it('passes descriptors, again and again', async () => {
    const qemu = await startQemu('-S');
    const client = await connect(qemu.socket);
    const memfd = createMemfd('mapram-test');
    try {
      for (let round = 0; round < 20; round += 1) {
        const [answer] = await Promise.all([
          client.execute('add-fd', { opaque: 'x'.repeat(round * 100) }, { fds: [memfd] }),
          client.execute('query-qmp-schema'),
        ]);
        const id = (answer as { 'fdset-id': number })['fdset-id'];
        await client.execute('remove-fd', { 'fdset-id': id });
      }
    } finally {
      closeSync(memfd);
    }
    expect(await client.execute('query-fdsets')).toEqual([]);
  }, 20_000);

  it('says that another client is connected', async () => {
    const qemu = await startQemu('-S');
    await connect(qemu.socket);
    await expect(QmpClient.connect(qemu.socket, { timeoutMs: 200 })).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('another client is connected'),
      path: qemu.socket,
    });
  });

  it('tells a QEMU that stands still or does not get to it from one that another client holds', async () => {
    const qemu = await startQemu('-S');
    const refusal = (): Promise<unknown> =>
      QmpClient.connect(qemu.socket, { timeoutMs: 200 }).then(
        () => 'connected',
        (error: unknown) => error,
      );
    qemu.child.kill('SIGSTOP');
    expect(await refusal()).toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining(`process ${qemu.pid} is stopped by a signal`),
    });
    qemu.child.kill('SIGCONT');
    const server = createServer().listen(join(qemu.directory, 'silent'));
    onTestFinished(() => void server.close());
    await expect(QmpClient.connect(join(qemu.directory, 'silent'), { timeoutMs: 200 })).rejects.toMatchObject(
      { code: 'E_QMP', message: expect.stringContaining('does not greet') },
    );
  });

  it('names a cgroup that is frozen', async (context) => {
    const mounts = readFileSync('/proc/self/mounts', 'utf8');
    const root = /^\S+ (\S+) cgroup2 rw/m.exec(mounts)?.[1];
    const group = `${root}/mapram-unit-${process.pid}`;
    try {
      mkdirSync(group);
    } catch (error) {
      return context.skip(`no cgroup (version 2) can be made here: ${(error as Error).message}`);
    }
    const qemu = await startQemu('-S');
    onTestFinished(async () => {
      writeFileSync(join(group, 'cgroup.freeze'), '0');
      writeFileSync(join(root as string, 'cgroup.procs'), String(qemu.pid));
      rmdirSync(group);
    });
    writeFileSync(join(group, 'cgroup.procs'), String(qemu.pid));
    writeFileSync(join(group, 'cgroup.freeze'), '1');
    await vi.waitFor(async () => {
      const refusal = QmpClient.connect(qemu.socket, { timeoutMs: 100 });
      await expect(refusal).rejects.toThrow(`process ${qemu.pid} is frozen with its cgroup`);
    }, 4_000);
  });

  it('tells after a while that QEMU keeps a command waiting, and why', async () => {
    const qemu = await startQemu('-S');
    const notices: (string | undefined)[] = [];
    const client = await QmpClient.connect(qemu.socket, {
      notice: (text) => notices.push(text),
      silenceMs: 50,
    });
    onTestFinished(() => client.close());
    qemu.child.kill('SIGSTOP');
    const answer = client.execute('query-status', {}, { timeoutMs: 0 });
    await vi.waitUntil(() => notices.length > 0);
    expect(notices[0]).toMatch(
      `QEMU has not answered the QMP command query-status for 0.05 s: process ${qemu.pid} is stopped`,
    );
    await expect(client.execute('query-name', {}, { timeoutMs: 20 })).rejects.toMatchObject({
      message: expect.stringContaining(`process ${qemu.pid} is stopped by a signal`),
    });
    qemu.child.kill('SIGCONT');
    await answer;
    expect(notices).toHaveLength(2);
    expect(notices[1]).toBeUndefined();
  });

  it.each([
    ['on one line', []],
    ['pretty', ['-qmp-pretty']],
  ])('speaks with a QEMU that answers %s', async (_, [option = '-qmp']) => {
    const qemu = await startQemu('-S');
    const path = join(qemu.directory, 'other');
    const other = await startQemu('-S', option, `unix:${path},server=on,wait=off`);
    const client = await connect(path);
    expect(await client.execute('query-name')).toEqual({});
    expect(await client.execute('query-qmp-schema')).toHaveProperty('length');
    expect(client.peerPid).toBe(other.pid);
  });

  it('reaches abstract names, long paths and what stands behind -qmp', async () => {
    const name = `mapram-unit-${process.pid}`;
    const qemu = await startQemu(
      ...['-S', '-qmp', `unix:${name},server=on,wait=off,abstract=on`],
      ...['-qmp', `unix:${name}-loose,server=on,wait=off,abstract=on,tight=off`],
    );
    const deep = join(qemu.directory, 'd'.repeat(120));
    mkdirSync(deep);
    renameSync(qemu.otherSocket, join(deep, 'qmp'));
    for (const address of [
      `@${name}`,
      `unix:${name},abstract=on`,
      `unix:${name}-loose,server=on,wait=off,abstract=on,tight=off`,
      `unix:${qemu.socket},server=on,wait=off`,
      join(deep, 'qmp'),
    ]) {
      const client = await QmpClient.connect(address);
      expect(await client.execute('query-name')).toEqual({});
      client.close();
    }
    await expect(QmpClient.connect(`@${name}-none`)).rejects.toMatchObject({
      code: 'E_QMP',
      path: `@${name}-none`,
    });
    await expect(QmpClient.connect('tcp:localhost:1')).rejects.toMatchObject({ code: 'E_USAGE' });
  });

  it('says what a QEMU in -preconfig needs', async () => {
    const qemu = await startQemu('-preconfig');
    const client = await connect(qemu.socket);
    await expect(client.execute('query-cpus-fast')).rejects.toMatchObject({
      code: 'E_GUEST_UNSUPPORTED',
      message: expect.stringContaining('x-exit-preconfig'),
    });
  });

  it('says that a relay passes no descriptors', async () => {
    const qemu = await startQemu('-S');
    const path = join(qemu.directory, 'relay');
    const relay = createServer((socket) => {
      const onward = createConnection(qemu.socket);
      socket.pipe(onward).pipe(socket);
      onward.on('error', () => {});
      socket.on('error', () => {});
    }).listen(path);
    onTestFinished(() => void relay.close());
    const client = await connect(path);
    const memfd = createMemfd('mapram-test');
    await expect(client.execute('add-fd', {}, { fds: [memfd] })).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('a relay (socat, ssh -L)'),
    });
    closeSync(memfd);
  });

  it('says that QEMU is gone when it dies in a command', async () => {
    const qemu = await startQemu('-S');
    const client = await connect(qemu.socket);
    qemu.child.kill('SIGSTOP');
    const answer = client.execute('query-status');
    setTimeout(() => qemu.child.kill('SIGKILL'), 50);
    await expect(answer).rejects.toMatchObject({ code: 'E_GUEST_GONE' });
    await expect(client.execute('query-status')).rejects.toMatchObject({ code: 'E_GUEST_GONE' });
  });

  it('waits for a command no longer than it is told, and goes on in order', async () => {
    const qemu = await startQemu('-S');
    const client = await connect(qemu.socket);
    qemu.child.kill('SIGSTOP');
    await expect(client.execute('query-status', {}, { timeoutMs: 50 })).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('query-status within 0.05 s'),
    });
    await expect(client.execute('query-name', {}, { timeoutMs: 50 })).rejects.toMatchObject({
      code: 'E_QMP',
    });
    qemu.child.kill('SIGCONT');
    expect(await client.execute('query-kvm')).toMatchObject({ enabled: false });
  });

  it('rejects with the reason of its signal', async () => {
    const qemu = await startQemu('-S');
    const client = await connect(qemu.socket);
    const reason = new Error('enough');
    await expect(client.execute('query-status', {}, { signal: AbortSignal.abort(reason) })).rejects.toBe(
      reason,
    );
    qemu.child.kill('SIGSTOP');
    const controller = new AbortController();
    const answer = client.execute('query-status', {}, { signal: controller.signal });
    setTimeout(() => controller.abort(reason), 20);
    await expect(answer).rejects.toBe(reason);
    qemu.child.kill('SIGCONT');
    expect(await client.execute('query-status')).toMatchObject({ running: false });
  });
});

describe('QmpClient with something else', () => {
  it('finds no socket', async () => {
    await expect(QmpClient.connect('/var/tmp/mapram-none.sock')).rejects.toMatchObject({
      code: 'E_NOT_FOUND',
      path: '/var/tmp/mapram-none.sock',
    });
    await expect(QmpClient.connect('/etc/passwd')).rejects.toMatchObject({
      code: 'E_QMP',
      message: 'this is no socket',
    });
  });

  it.each(['220 mail ESMTP\r\n', '[1, 2]\n', '{"QMP": }\n'])('refuses the greeting %j', async (text) => {
    const directory = mkdtempSync('/var/tmp/mapram-unit-');
    const path = join(directory, 'sock');
    const server = createServer((socket) => socket.write(text)).listen(path);
    onTestFinished(() => {
      server.close();
      rmSync(directory, { recursive: true, force: true });
    });
    await delay(10);
    await expect(QmpClient.connect(path)).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('does not speak QMP'),
    });
  });

  it('says what a relay needs that closes the connection at once', async () => {
    const directory = mkdtempSync('/var/tmp/mapram-unit-');
    const server = createServer((socket) => socket.destroy()).listen(join(directory, 'sock'));
    onTestFinished(() => {
      server.close();
      rmSync(directory, { recursive: true, force: true });
    });
    await expect(QmpClient.connect(join(directory, 'sock'))).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('lives on: a relay'),
    });
  });

  it('ends the connection at an answer that is no JSON', async () => {
    const path = await fakeQemu((_, socket) => socket.write('{"return": }\n'));
    const client = await connect(path);
    await expect(client.execute('x')).rejects.toMatchObject({ code: 'E_QMP' });
    await expect(client.execute('x')).rejects.toMatchObject({ code: 'E_QMP' });
  });

  it('ends the connection at an answer without end', async () => {
    const path = await fakeQemu((_, socket) => socket.write(`{"return": "${'x'.repeat(17 * 2 ** 20)}`));
    const client = await connect(path);
    await expect(client.execute('x')).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('a message of more than'),
    });
  });

  it('ends the connection at an answer to nothing', async () => {
    const path = await fakeQemu((_, socket) => socket.write('{"return": {}, "id": 77}\n'));
    const client = await connect(path);
    await expect(client.execute('x')).rejects.toMatchObject({ code: 'E_QMP' });
  });

  it('puts an answer together that comes byte by byte', async () => {
    const path = await fakeQemu(async ({ id }, socket) => {
      for (const byte of Buffer.from(`{"return": "Größe", "id": ${id}}\r\n`)) {
        socket.write(Buffer.of(byte));
        await delay(1);
      }
    });
    const client = await connect(path);
    expect(await client.execute('x')).toBe('Größe');
  });

  it('sends a command though the answers to others never come', async () => {
    const path = await fakeQemu(({ id, execute }, socket) => {
      if (execute === 'cont') socket.write(`{"return": {}, "id": ${id}}\n`);
    });
    const client = await connect(path);
    const controller = new AbortController();
    const hanging = client.execute('stop', {}, { signal: controller.signal, timeoutMs: 0 });
    const givenUp = client.execute('remove-fd', {}, { timeoutMs: 50 });
    expect(await client.execute('cont')).toEqual({});
    await expect(givenUp).rejects.toMatchObject({ code: 'E_QMP' });
    controller.abort(new Error('enough'));
    await expect(hanging).rejects.toThrow('enough');
  });

  it('sends no descriptors past a line that is still queued', async () => {
    const path = await fakeQemu(() => {});
    const client = await connect(path);
    const text = 'x'.repeat(4 * 2 ** 20);
    await expect(client.execute('big', { text }, { timeoutMs: 50 })).rejects.toMatchObject({ code: 'E_QMP' });
    await expect(client.execute('add-fd', {}, { fds: [0], timeoutMs: 50 })).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('did not answer the QMP command add-fd'),
    });
  });

  it('sends descriptors when all that was sent before is answered, unless nobody waits for that any more', async () => {
    const seen: string[] = [];
    const path = await fakeQemu(async ({ id, execute }, socket) => {
      seen.push(execute);
      await delay(100);
      socket.write(`{"return": {}, "id": ${id}}\n`);
    });
    const client = await connect(path);
    const slow = client.execute('slow');
    await expect(client.execute('given-up', {}, { fds: [0], timeoutMs: 20 })).rejects.toThrow('given-up');
    await Promise.all([
      client.execute('first', {}, { fds: [0] }),
      client.execute('second', {}, { fds: [0] }),
      slow,
    ]);
    expect(seen.filter((command) => command !== 'qmp_capabilities')).toEqual(['slow', 'first', 'second']);
  });
});
