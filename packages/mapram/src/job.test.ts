import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import { MapramError } from './errors.ts';
import { JobContext, startJob } from './job.ts';
import type { Job } from './native.ts';

/** Work of the addon that ends when it is told to. */
function fakeWork(needsStorage = true) {
  let end = (_: Error | undefined): void => {};
  const ended = new Promise<void>((resolve, reject) => {
    end = (error) => (error === undefined ? resolve() : reject(error));
  });
  const seen = { isCancelled: false, bytesDone: 0, completions: 0, stopping: false };
  const work: Job = {
    needsStorage,
    run: () => ended.then(() => ({ bitmaps: [], writtenBytes: 7, copiedBytes: 0 })),
    progress: () => ({ ...seen, reading: false }),
    cancel: () => {
      seen.isCancelled = true;
    },
  };
  return { work, seen, end: (error?: Error) => end(error) };
}

function deferred<T>() {
  let resolve = (_: T): void => {};
  let reject = (_: unknown): void => {};
  const promise = new Promise<T>((...both) => ([resolve, reject] = both));
  return { promise, resolve, reject };
}

describe('startJob', () => {
  it('resolves with the report and carries progress that ends', async () => {
    const { work, seen, end } = fakeWork();
    const job = startJob(undefined, async (context) => {
      context.enter('transfer', 100);
      const result = await context.transfer(work);
      context.enter('finish');
      return result.writtenBytes;
    });
    const samples = [];
    for await (const sample of job.progress) {
      samples.push(sample);
      seen.bytesDone = 60;
      if (samples.length === 2) end();
    }
    expect(await job).toBe(7);
    expect(samples[0]).toEqual({ phase: 'prepare', bytesDone: 0, bytesTotal: 0 });
    expect(samples).toContainEqual({ phase: 'transfer', bytesDone: 60, bytesTotal: 100 });
    expect(samples.at(-1)).toEqual({ phase: 'finish', bytesDone: 60, bytesTotal: 100 });
  });

  it('makes a rejection of whatever is thrown at once, and its progress does not throw', async () => {
    const job = startJob(undefined, () => {
      throw new MapramError('E_USAGE', 'no');
    });
    await expect(job).rejects.toMatchObject({ code: 'E_USAGE' });
    const samples = [];
    for await (const sample of job.progress) samples.push(sample);
    expect(samples).toHaveLength(1);
  });

  it('leaves it to the work to refuse what is no signal', async () => {
    const job = startJob({} as AbortSignal, async (context) => context.signal.aborted);
    expect(await job).toBe(false);
  });

  it('serves several readers of its progress, also one that leaves early', async () => {
    const job = startJob(undefined, () => delay(150));
    const count = async (limit: number): Promise<number> => {
      let seen = 0;
      for await (const _ of job.progress) {
        seen += 1;
        if (seen === limit) break;
      }
      return seen;
    };
    const [all, one] = await Promise.all([count(100), count(1)]);
    expect(all).toBeGreaterThanOrEqual(2);
    expect(one).toBe(1);
    await job;
  });

  it('does not begin when it is cancelled already', async () => {
    const reason = new Error('early');
    let hasBegun = false;
    const job = startJob(AbortSignal.abort(reason), async () => {
      hasBegun = true;
    });
    await expect(job).rejects.toBe(reason);
    expect(hasBegun).toBe(false);
  });
});

describe('JobContext.run', () => {
  it('cancels the work and waits until it has drained', async () => {
    const { work, seen, end } = fakeWork();
    const controller = new AbortController();
    const context = new JobContext(controller.signal);
    let isSettled = false;
    const run = context.run(work).finally(() => {
      isSettled = true;
    });
    const outcome = expect(run).rejects.toBe('reason');
    controller.abort('reason');
    await delay(5);
    expect(seen.isCancelled).toBe(true);
    expect(isSettled).toBe(false);
    end(new MapramError('E_CANCELLED', 'cancelled'));
    await outcome;
  });

  it('keeps a result that was there before the cancel', async () => {
    const { work, end } = fakeWork();
    const controller = new AbortController();
    const run = new JobContext(controller.signal).run(work);
    end();
    controller.abort();
    expect(await run).toMatchObject({ writtenBytes: 7 });
  });

  it('tells at once that work has failed, before it has drained, and names storage that does not answer', async () => {
    vi.useFakeTimers();
    const { work, seen, end } = fakeWork(false);
    const context = new JobContext();
    context.onFailing = vi.fn();
    const run = context.run(work);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(context.onFailing).not.toHaveBeenCalled();
    seen.stopping = true;
    await vi.advanceTimersByTimeAsync(200);
    expect(context.onFailing).toHaveBeenCalledOnce();
    seen.completions += 1;
    await vi.advanceTimersByTimeAsync(9_000);
    expect(context.progress().notice).toBeUndefined();
    await vi.advanceTimersByTimeAsync(2_000);
    expect(context.progress().notice).toBe('the storage has not answered for 10 s');
    seen.completions += 1;
    await vi.advanceTimersByTimeAsync(200);
    expect(context.progress().notice).toBeUndefined();
    end(new MapramError('E_IO', 'broken'));
    await expect(run).rejects.toMatchObject({ code: 'E_IO' });
    vi.useRealTimers();
  });

  it('names storage that hangs though nothing failed, and says what an interrupt does until one came', async () => {
    vi.useFakeTimers();
    const { work, end } = fakeWork();
    const controller = new AbortController();
    const context = new JobContext(controller.signal);
    const run = context.run(work);
    await vi.advanceTimersByTimeAsync(11_000);
    expect(context.progress().notice).toBe('the storage has not answered for 10 s');
    context.holdsGuest = true;
    await vi.advanceTimersByTimeAsync(200);
    expect(context.progress().notice).toMatch(/10 s; an interrupt lets the guest run$/);
    controller.abort('reason');
    await vi.advanceTimersByTimeAsync(200);
    expect(context.progress().notice).toBe('the storage has not answered for 10 s');
    end(new MapramError('E_CANCELLED', 'cancelled'));
    await expect(run).rejects.toBe('reason');
    expect(context.progress().notice).toBeUndefined();
    vi.useRealTimers();
  });

  it('passes failures on', async () => {
    const { work, end } = fakeWork();
    end(new MapramError('E_IO', 'broken'));
    await expect(new JobContext().run(work)).rejects.toMatchObject({ code: 'E_IO' });
  });
});

describe('JobContext.answer', () => {
  it('names storage that hangs until the answer is there', async () => {
    vi.useFakeTimers();
    const context = new JobContext();
    const { promise, resolve } = deferred<number>();
    const answer = context.answer(promise);
    await vi.advanceTimersByTimeAsync(9_000);
    expect(context.progress().notice).toBeUndefined();
    await vi.advanceTimersByTimeAsync(2_000);
    expect(context.progress().notice).toBe('the storage has not answered for 10 s');
    resolve(5);
    expect(await answer).toBe(5);
    expect(context.progress().notice).toBeUndefined();
    vi.useRealTimers();
  });

  it('ends at once when it is cancelled, and undoes what comes of it late', async () => {
    const controller = new AbortController();
    const context = new JobContext(controller.signal);
    const { promise, resolve } = deferred<number>();
    const undo = vi.fn();
    const answer = context.answer(promise, undo);
    controller.abort('reason');
    await expect(answer).rejects.toBe('reason');
    expect(undo).not.toHaveBeenCalled();
    resolve(5);
    await vi.waitFor(() => expect(undo).toHaveBeenCalledWith(5));
    await expect(context.answer(Promise.resolve(6), undo)).rejects.toBe('reason');
    await vi.waitFor(() => expect(undo).toHaveBeenCalledWith(6));
  });

  it('passes failures on, and minds none that comes late', async () => {
    const controller = new AbortController();
    const context = new JobContext(controller.signal);
    await expect(context.answer(Promise.reject(new Error('broken')))).rejects.toThrow('broken');
    const { promise, reject } = deferred<number>();
    const answer = context.answer(promise);
    controller.abort('reason');
    await expect(answer).rejects.toBe('reason');
    reject(new Error('late'));
  });
});
