import { afterEach, describe, expect, it, vi } from 'vitest';
import { MapramError } from '../errors.ts';
import { callersMonitor } from './callers-monitor.ts';
import type { ExecuteOptions, Monitor } from './monitor.ts';
import { whyStandstill } from './silence.ts';

function failing(execute: () => never | Promise<never>): Monitor {
  return callersMonitor({ execute, events: { on: () => {}, off: () => {} } });
}

afterEach(() => vi.useRealTimers());

describe('callersMonitor', () => {
  it('tells of a command that waits, also where there is no limit, unless that is no news', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'setTimeout'] });
    const notices: (string | undefined)[] = [];
    let answer = (_: unknown): void => {};
    const execute = (): Promise<unknown> => new Promise((resolve) => (answer = resolve));
    const slow = { execute, events: { on: () => {}, off: () => {} } };
    const monitor = callersMonitor(
      slow,
      () => false,
      (text) => notices.push(text),
    );
    const stop = async (options: ExecuteOptions, until: () => unknown): Promise<void> => {
      const stopped = monitor.execute('stop', {}, { timeoutMs: 0, ...options });
      await vi.advanceTimersByTimeAsync(10_000);
      // What tells asks the system first.
      await until();
      answer({});
      await stopped;
    };
    await stop({ mayTakeLong: true }, async () => {
      for (let times = 0; times < 3; times += 1) await whyStandstill(0);
    });
    expect(notices).toEqual([]);
    await stop({}, () => vi.waitUntil(() => notices.length > 0));
    expect(notices).toEqual(['QEMU has not answered the QMP command stop for 10 s', undefined]);
  });

  it.each<[string, unknown, () => never | Promise<never>]>([
    ...[new TypeError('no such method'), 'text'].flatMap(
      (cause): [string, unknown, () => never | Promise<never>][] => [
        ['a rejection', cause, () => Promise.reject(cause)],
        [
          'a throw',
          cause,
          () => {
            throw cause;
          },
        ],
      ],
    ),
  ])('makes an E_QMP of %s with %s', async (_, cause, execute) => {
    const error = await failing(execute)
      .execute('cont')
      .catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'E_QMP', cause });
    expect((error as Error).message).toMatch(
      /^The monitor failed at the QMP command cont: (no such method|text)$/,
    );
  });

  it('hints at the scratch file where descriptors were to be passed', async () => {
    const monitor = failing(() => Promise.reject(new Error('No file descriptor supplied via SCM_RIGHTS')));
    await expect(monitor.execute('add-fd', {}, { fds: [0] })).rejects.toThrow('name a scratchFile');
  });

  it('keeps our own errors, and the signal’s reason', async () => {
    const own = new MapramError('E_GUEST_GONE', 'gone');
    await expect(failing(() => Promise.reject(own)).execute('cont')).rejects.toBe(own);
    const signal = AbortSignal.abort('enough');
    const aborted = failing(() => Promise.reject(new Error('aborted')));
    await expect(aborted.execute('stop', {}, { signal })).rejects.toBe('enough');
  });

  it('waits no longer than was asked, though the monitor takes no options', async () => {
    const deaf = failing(() => new Promise<never>(() => {}));
    await expect(deaf.execute('cont', {}, { timeoutMs: 20 })).rejects.toMatchObject({
      code: 'E_QMP',
      message: 'QEMU did not answer the QMP command cont within 0.02 s',
    });
    const controller = new AbortController();
    const hanging = deaf.execute('stop', {}, { timeoutMs: 0, signal: controller.signal });
    controller.abort('enough');
    await expect(hanging).rejects.toBe('enough');
  });
});
