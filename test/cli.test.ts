import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cleanup } from './support/cleanup.ts';
import { type CliReport, failWith, report, run, succeed } from './support/cli.ts';
import { names, pausedGuest, SLOWLY, testCleanup, waitingQemu } from './support/fixtures.ts';
import { dataBytes, Image } from './support/oracle.ts';
import { CLI, diskDirectory, ROOT } from './support/paths.ts';
import type { Qemu } from './support/qemu.ts';

const cleanup = new Cleanup();
let directory: string;
let image: string;
let qemu: Qemu;
let saved: CliReport;

beforeAll(async () => {
  directory = diskDirectory(cleanup);
  image = join(directory, 'image');
  qemu = await pausedGuest(cleanup, { mebibytes: 128, memory: filled(128) });
  saved = await succeed(['save', '--qmp', qemu.socket, '--channels', '3', '--queue-depth', '4', image]);
});
afterAll(() => cleanup.run());

/** Half of the memory holds data, so that sizes and counts say something. */
function filled(mebibytes: number): string[] {
  const path = join(directory, 'memory');
  writeFileSync(path, Buffer.alloc((mebibytes / 2) << 20, 0x5a));
  truncateSync(path, mebibytes << 20);
  return ['-object', `memory-backend-file,id=ram0,size=${mebibytes}M,mem-path=${path},share=on`];
}

describe('words', () => {
  test('--help names every command, on stdout', async () => {
    const result = await run(['--help']);
    expect(result).toMatchObject({ status: 0, stderr: '' });
    for (const command of ['save', 'restore', 'inspect', 'doctor']) expect(result.stdout).toContain(command);
  });

  test.for<[string, string[]]>([
    [
      'save',
      [
        '--qmp',
        '--channels',
        '--queue-depth',
        '--engine',
        '--no-direct',
        '--pid',
        '--then',
        '--force',
        '--json',
        '--quiet',
      ],
    ],
    [
      'restore',
      [
        '--qmp',
        '--channels',
        '--queue-depth',
        '--engine',
        '--no-direct',
        '--pid',
        '--then',
        '--method',
        '--offset',
        '--json',
        '--quiet',
      ],
    ],
    ['inspect', ['--offset', '--json']],
    ['doctor', ['--dir', '--qmp']],
  ])('%s --help names every option', async ([command, options]) => {
    const result = await run([command, '--help']);
    expect(result.status).toBe(0);
    for (const option of options) expect(result.stdout).toContain(option);
  });

  test('--version is that of the package', async () => {
    const { version } = JSON.parse(readFileSync(join(ROOT, 'packages/mapram/package.json'), 'utf8')) as {
      version: string;
    };
    const result = await run(['--version']);
    expect(result.stdout.trim()).toBe(version);
    expect(result.status).toBe(0);
  });

  test.for([
    [[]],
    [['fly']],
    [['save']],
    [['save', 'image']],
    [['save', '--qmp', 'x']],
    [['save', '--qmp', 'x', 'image', 'another']],
    [['save', '--qmp', 'x', '--frobnicate', 'image']],
    [['save', '--qmp', 'x', '--channels', '0', 'image']],
    [['save', '--qmp', 'x', '--channels', '129', 'image']],
    [['save', '--qmp', 'x', '--channels', '2.5', 'image']],
    [['save', '--qmp', 'x', '--channels', 'many', 'image']],
    [['save', '--qmp', 'x', '--queue-depth', '0', 'image']],
    [['save', '--qmp', 'x', '--engine', 'steam', 'image']],
    [['save', '--qmp', 'x', '--then', 'dance', 'image']],
    [['save', '--qmp', 'x', '--pid', '-1', 'image']],
    [['save', '--qmp', 'x', '--offset', '4096', 'image']],
    [['restore', '--qmp', 'x', '--then', 'quit', 'image']],
    [['restore', '--qmp', 'x', '--method', 'hope', 'image']],
    [['restore', '--qmp', 'x', '--offset', '-1', 'image']],
    [['restore', '--qmp', 'x', '--force', 'image']],
    [['save', '--qmp', 'x', '--qmp', 'y', 'image']],
    [['restore', '--qmp', 'x', '--then', 'pause', '--then', 'resume', 'image']],
    [['inspect']],
    [['inspect', '']],
    [['inspect', '--qmp', 'x', 'image']],
  ] as [string[]][])('%j is a usage error', async ([words]) => {
    const result = await run(words);
    expect(result.status).toBe(2);
    expect(result.stdout).toBe('');
    expect(result.stderr).toMatch(/\w/);
    const asJson = await run([...words, '--json']);
    expect(asJson.status).toBe(2);
    expect(report(asJson)).toMatchObject({ ok: false, error: { code: 'E_USAGE' } });
  });
});

describe('the report of a save', () => {
  test('says what was done, in numbers that agree with the image', () => {
    const file = new Image(image);
    file.close();
    const guestBytes = file.blocks.reduce((sum, { used }) => sum + used, 0);
    expect(saved).toMatchObject({
      ok: true,
      image,
      guestBytes,
      dataBytes: dataBytes(image),
      channels: 3,
      queueDepth: 4,
      direct: true,
    });
    expect(saved.schemaVersion).toBe(1);
    expect(saved.pages).toBe(guestBytes / 4096);
    expect(saved.zeroPages).toBe((guestBytes - dataBytes(image)) / 4096);
    expect(saved.blocks?.map(({ name }) => name)).toEqual(file.blocks.map(({ name }) => name));
    expect(['io-uring', 'blocking']).toContain(saved.engine);
  });

  test('has times that fit together', () => {
    for (const key of ['durationMs', 'pauseMs', 'bytesPerSecond', 'cpuSeconds'] as const) {
      expect(saved[key], key).toBeTypeOf('number');
      expect(saved[key], key).toBeGreaterThanOrEqual(0);
    }
    expect(saved.durationMs).toBeGreaterThan(0);
  });
});

test('the report of a restore has the same shape', async () => {
  const local = testCleanup();
  const small = await pausedGuest(local);
  const path = join(diskDirectory(local), 'image');
  const before = await succeed(['save', '--qmp', small.socket, path]);
  for (const method of ['fill', 'qemu']) {
    const copy = await waitingQemu(local, { paused: true });
    const restored = await succeed(['restore', '--qmp', copy.socket, '--method', method, path]);
    for (const key of ['schemaVersion', 'image', 'guestBytes', 'dataBytes', 'zeroPages', 'pages'])
      expect(restored[key], `${method} ${key}`).toEqual(before[key]);
    for (const key of ['durationMs', 'bytesPerSecond', 'cpuSeconds', 'channels', 'queueDepth'])
      expect(restored[key], `${method} ${key}`).toBeTypeOf('number');
    expect(restored.blocks?.map(({ name }) => name)).toEqual(before.blocks?.map(({ name }) => name));
  }
});

describe('output', () => {
  const save = (...words: string[]): Promise<Awaited<ReturnType<typeof run>>> =>
    run(['save', '--qmp', qemu.socket, '--force', ...words, join(directory, 'again')]);

  test('without options says on stdout what was done, and nothing on a stderr that is no terminal', async () => {
    const result = await save();
    expect(result).toMatchObject({ status: 0, stderr: '' });
    expect(result.stdout).toContain(join(directory, 'again'));
  });

  test('--quiet leaves the progress out, not the result', async () => {
    const result = await save('--quiet');
    expect(result).toMatchObject({ status: 0, stderr: '' });
    expect(result.stdout).toContain(join(directory, 'again'));
  });

  test('--quiet prints errors all the same', async () => {
    const result = await run(['save', '--qmp', qemu.socket, '--quiet', image]);
    expect(result).toMatchObject({ status: 1, stdout: '' });
    expect(result.stderr).toMatch(/E_TARGET_EXISTS/);
  });

  test('--json prints one object and nothing else', async () => {
    const result = await save('--json');
    expect(result).toMatchObject({ status: 0, stderr: '' });
    expect(report(result).ok).toBe(true);
  });

  test('--progress writes whole lines to a stderr that is no terminal, at most one a second', async () => {
    const result = await save('--progress', ...SLOWLY);
    expect(result.status).toBe(0);
    expect(result.stderr).not.toContain('\r');
    expect(result.stderr).not.toContain('\u001b');
    const lines = result.stderr.split('\n').filter((line) => line !== '');
    expect(lines.length).toBeLessThanOrEqual(Math.ceil(result.milliseconds / 1000) + 1);
    expect(lines.length).toBeGreaterThanOrEqual(1);
    for (const line of lines) expect(line).toMatch(/^saving +\d+ % .* of 6\d\.?\d* MiB/);
  });

  test('a reader that goes away does not change the outcome', async () => {
    const child = spawn(process.execPath, [CLI, 'inspect', image], { stdio: ['ignore', 'pipe', 'pipe'] });
    child.stdout.destroy();
    let stderr = '';
    child.stderr.on('data', (text: Buffer) => (stderr += text.toString()));
    const status = await new Promise((resolve) => child.once('close', resolve));
    expect(stderr).toBe('');
    expect(status).toBe(0);
  });

  test('a result that cannot be written is a failure, and what was done is said', async () => {
    const again = join(directory, 'again');
    const words = [CLI, 'save', '--qmp', qemu.socket, '--force', '--json', again];
    const full = openSync('/dev/full', 'w');
    const child = spawn(process.execPath, words, { stdio: ['ignore', full, 'pipe'] });
    closeSync(full);
    let stderr = '';
    child.stderr?.on('data', (text: Buffer) => (stderr += text.toString()));
    const status = await new Promise((resolve) => child.once('close', resolve));
    expect(stderr).toMatch(/the result cannot be written .*ENOSPC.*, but the guest was saved to /);
    expect(status).toBe(1);
    await succeed(['inspect', again]);
  });
});

describe('inspect', () => {
  test('shows the machine, the run state and every block', async () => {
    const result = await run(['inspect', image]);
    expect(result).toMatchObject({ status: 0, stderr: '' });
    expect(result.stdout).toContain('pc-q35-10.0');
    expect(result.stdout).toContain('paused');
    for (const name of ['ram0', 'pc.bios', '/rom@etc/acpi/tables']) expect(result.stdout).toContain(name);
  });

  test('--json has the numbers', async () => {
    const inspected = await succeed(['inspect', image]);
    expect(inspected.schemaVersion).toBe(1);
    expect(JSON.stringify(inspected)).toContain('"pc-q35-10.0"');
    const file = new Image(image);
    file.close();
    expect(inspected.blocks?.map(({ name }) => name)).toEqual(file.blocks.map(({ name }) => name));
  });

  test('an image that is not there', async () => {
    const failure = await failWith(1, 'E_NOT_FOUND', ['inspect', join(directory, 'none')]);
    expect(failure.error?.path).toBe(join(directory, 'none'));
  });

  test('a directory', async () => {
    const failure = await failWith(3, 'E_IMAGE_INVALID', ['inspect', directory]);
    expect(failure.error?.path).toBe(directory);
  });
});

describe('doctor', () => {
  test('says what works on this host', async () => {
    const result = await run(['doctor']);
    expect(result.status).toBe(0);
    for (const word of ['io-uring', 'tokio-uring', 'blocking']) expect(result.stdout).toContain(word);
  });

  test('looks at a directory and leaves nothing in it', async () => {
    const place = diskDirectory(testCleanup());
    const result = await run(['doctor', '--dir', place]);
    expect(result.stdout).toContain(place);
    expect(names(place)).toEqual([]);
  });

  test('a directory that is a file, or is not there, fails a check', async () => {
    const file = await failWith(4, 'E_HOST_UNSUPPORTED', ['doctor', '--dir', image]);
    expect(file.error?.message).toBe(`${image} is no directory`);
    await failWith(1, 'E_NOT_FOUND', ['doctor', '--dir', join(directory, 'none')]);
  });

  test('a socket that is not there fails a check', async () => {
    await failWith(1, 'E_NOT_FOUND', ['doctor', '--qmp', join(directory, 'none.sock')]);
  });

  test('looks at a guest without changing it', async () => {
    const seen = qemu.qmp.events.length;
    const result = await run(['doctor', '--qmp', qemu.socket, '--json']);
    expect(report(result).schemaVersion).toBe(1);
    expect(result.stdout).toContain('ram0');
    expect(await qemu.qmp.status()).toBe('paused');
    expect(qemu.qmp.events.slice(seen)).toEqual([]);
    expect(await qemu.qmp.execute('query-fdsets')).toEqual([]);
  });
});
