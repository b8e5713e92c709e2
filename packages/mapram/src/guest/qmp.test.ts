import { closeSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it, onTestFinished } from 'vitest';
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
  });

  it('says that another client is connected', async () => {
    const qemu = await startQemu('-S');
    await connect(qemu.socket);
    await expect(QmpClient.connect(qemu.socket, { timeoutMs: 200 })).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('another client is connected'),
      path: qemu.socket,
    });
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

  it('waits for a command no longer than it is told, and goes on when the late answer is there', async () => {
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
  });

  it.each(['220 mail ESMTP\r\n', '[1, 2]\n', '{"QMP": \n'])('refuses the greeting %j', async (text) => {
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

  it('ends the connection at an answer that is no JSON', async () => {
    const path = await fakeQemu((_, socket) => socket.write('{"return": \n'));
    const client = await connect(path);
    await expect(client.execute('x')).rejects.toMatchObject({ code: 'E_QMP' });
    await expect(client.execute('x')).rejects.toMatchObject({ code: 'E_QMP' });
  });

  it('ends the connection at an answer without end', async () => {
    const path = await fakeQemu((_, socket) => socket.write('x'.repeat(17 * 2 ** 20)));
    const client = await connect(path);
    await expect(client.execute('x')).rejects.toMatchObject({
      code: 'E_QMP',
      message: expect.stringContaining('a line of more than'),
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

  it('sends no descriptors past a line that is still queued', async () => {
    const path = await fakeQemu(() => {});
    const client = await connect(path);
    const text = 'x'.repeat(4 * 2 ** 20);
    await expect(client.execute('big', { text }, { timeoutMs: 50 })).rejects.toMatchObject({ code: 'E_QMP' });
    await expect(client.execute('add-fd', {}, { fds: [0], timeoutMs: 50 })).rejects.toMatchObject({
      code: 'E_QMP',
    });
  });
});
