import { EventEmitter } from 'node:events';
import { describe, expect, it, vi } from 'vitest';
import type { InspectReport } from '../inspect.ts';
import { run } from './main.ts';
import type { CommandResult } from './outcome.ts';

const inspect = vi.hoisted(() => vi.fn<(path: string) => Promise<InspectReport>>());
vi.mock('../inspect.ts', () => ({ inspect }));
const runSave = vi.hoisted(() => vi.fn<() => Promise<CommandResult>>());
vi.mock('./transfer.ts', () => ({ runSave }));

const REPORT: InspectReport = {
  image: '/i',
  offset: 0,
  machine: 'pc-q35-10.0',
  capabilities: ['mapped-ram'],
  pageBytes: 4096,
  guestBytes: 0,
  dataBytes: 0,
  pages: 0,
  zeroPages: 0,
  deviceStateBytes: 1,
  hasVmDescription: false,
  imageBytes: 100,
  trailingBytes: 0,
  fileBytes: 100,
  allocatedBytes: 4096,
  blocks: [],
};

/** Runs a command line with everything that it writes kept. */
async function runHere(argv: string[], source = new FakeProcess()) {
  let out = '';
  let err = '';
  const terminal = {
    out: async (text: string) => {
      if (source.isFull) throw new Error('ENOSPC');
      out += text;
    },
    err: (text: string) => {
      err += text;
    },
    isTerminal: false,
    columns: () => 80,
    now: () => 0,
  };
  const status = await run(argv, terminal, source);
  return { status, out, err };
}

class FakeProcess extends EventEmitter {
  isFull = false;
  exit(): void {}
}

describe('a command that succeeds', () => {
  it('prints text, or one JSON object with --json', async () => {
    inspect.mockResolvedValue(REPORT);
    const { status, out, err } = await runHere(['inspect', '/i', '--json']);
    expect({ status, err }).toEqual({ status: 0, err: '' });
    expect(out).toMatch(/^\{"schemaVersion":1,"ok":true,.*\}\n$/);
    expect(JSON.parse(out)).toEqual({ schemaVersion: 1, ok: true, ...REPORT });
    expect(await runHere(['inspect', '/i'])).toMatchObject({
      status: 0,
      out: expect.stringContaining('pc-q35'),
    });
    expect(await runHere(['--version', '--json'])).toMatchObject({
      status: 0,
      out: expect.stringMatching(/^\d+\./),
    });
  });
});

describe('a command that fails', () => {
  it('says why on stderr', async () => {
    const result = await runHere(['inspct']);
    expect(result).toMatchObject({ status: 2, out: '' });
    expect(result.err).toBe("mapram: unknown command 'inspct' (Did you mean inspect?) (E_USAGE)\n");
  });

  it('says why on stdout with --json, usage errors included', async () => {
    const result = await runHere(['save', '--json', '--chanels', '8', 'x']);
    expect(result).toMatchObject({ status: 2, err: '' });
    expect(JSON.parse(result.out)).toMatchObject({ schemaVersion: 1, ok: false, error: { code: 'E_USAGE' } });
  });

  it('survives an error that nobody foresaw', async () => {
    inspect.mockRejectedValue(new TypeError('x is not a function'));
    const result = await runHere(['inspect', '/i']);
    expect(result).toMatchObject({ status: 6, err: expect.stringContaining('x is not a function') });
  });
});

describe('a command whose result cannot be written', () => {
  it('says on stderr what it did, and fails', async () => {
    const source = new FakeProcess();
    source.isFull = true;
    inspect.mockResolvedValue(REPORT);
    expect(await runHere(['inspect', '/i'], source)).toEqual({
      status: 1,
      out: '',
      err: 'mapram: the result cannot be written (ENOSPC)\n',
    });
    runSave.mockResolvedValue({ report: {}, text: 'saved', status: 0 });
    expect(await runHere(['save', '--qmp', 'q', '/i', '--json'], source)).toEqual({
      status: 1,
      out: '',
      err: 'mapram: the result cannot be written (ENOSPC), but the guest was saved to /i\n',
    });
    const refused = await runHere(['save', '--json'], source);
    expect(refused).toMatchObject({ status: 2, err: expect.stringContaining('E_USAGE') });
  });
});

describe('a command that is interrupted', () => {
  it('exits by the signal and says that it was cancelled', async () => {
    inspect.mockReturnValue(new Promise(() => {}));
    const source = new FakeProcess();
    const result = runHere(['inspect', '/i', '--json'], source);
    await vi.waitUntil(() => inspect.mock.lastCall !== undefined && source.listenerCount('SIGTERM') === 1);
    setTimeout(() => source.emit('SIGTERM', 'SIGTERM'), 10);
    const { status, out, err } = await result;
    expect(status).toBe(143);
    expect(JSON.parse(out)).toMatchObject({
      ok: false,
      error: { code: 'E_CANCELLED' },
      guestState: 'untouched',
    });
    expect(err).toContain('cancelling');
    expect(source.listenerCount('SIGTERM')).toBe(0);
  });

  it.each([
    ['save', ['save', '--qmp', 'q', '/i'], 'cont resumes it'],
    ['inspect', ['inspect', '/i'], undefined],
  ])('says what a second signal may leave of %s', async (_, argv, leftover) => {
    runSave.mockRejectedValue(new Error('cancelled'));
    inspect.mockReturnValue(new Promise(() => {}));
    const source = new FakeProcess();
    const result = runHere(argv, source);
    source.emit('SIGINT', 'SIGINT');
    source.emit('SIGINT', 'SIGINT');
    const { err } = await result;
    if (leftover === undefined) expect(err).not.toContain('stopped at once');
    else expect(err).toMatch(new RegExp(`stopped at once.*${leftover}`));
  });

  it('hears a signal that comes while its modules are loaded', async () => {
    inspect.mockReturnValue(new Promise(() => {}));
    const source = new FakeProcess();
    const result = runHere(['inspect', '/i'], source);
    source.emit('SIGINT', 'SIGINT');
    expect(await result).toMatchObject({ status: 130, err: expect.stringContaining('E_CANCELLED') });
  });
});
