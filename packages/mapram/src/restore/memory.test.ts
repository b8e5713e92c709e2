import { describe, expect, it, vi } from 'vitest';
import { MapramError } from '../errors.ts';
import type { OpenImage } from '../image-file.ts';
import { JobContext } from '../job.ts';
import type { MemoryRestore, Transfer } from '../options.ts';
import { fillMemory } from './fill.ts';
import { restoreIntoMemory } from './memory.ts';

const close = vi.hoisted(() => vi.fn());
vi.mock('../native.ts', () => ({ GuestMemory: { ofNamed: async () => ({ close, regions: () => [] }) } }));
vi.mock('./fill.ts', () => ({ fillMemory: vi.fn() }));

const opened = {
  path: '/i',
  image: { machine: 'm', blocks: [{ name: 'a', usedLength: 4096 }] },
} as unknown as OpenImage;
const settings = { memory: [{ name: 'a', length: 4096 }] } as unknown as MemoryRestore;

/** A restore whose filling fails with `error`, before or after its first write. */
function failing(
  error: unknown,
  hasBegun: boolean,
  context = new JobContext(),
  controller?: AbortController,
): Promise<unknown> {
  vi.mocked(fillMemory).mockImplementation(async ({ job }) => {
    if (hasBegun) job.writingSince = performance.now();
    controller?.abort(error);
    throw error;
  });
  const how = {} as Transfer;
  return restoreIntoMemory(settings, { opened, how, job: context });
}

describe('a restore into memory that fails', () => {
  const failure = new MapramError('E_IO', 'the image cannot be read', { path: '/i', offset: 4096 });

  it('says that the memory holds a part only, once it has begun', async () => {
    await expect(failing(failure, true)).rejects.toMatchObject({
      code: 'E_RESTORE_INCOMPLETE',
      message: 'The memory was restored in part only: the image cannot be read',
      path: '/i',
      offset: 4096,
      cause: failure,
    });
    await expect(failing(failure, false)).rejects.toBe(failure);
    expect(close).toHaveBeenCalledTimes(2);
  });

  it('passes a cancel on as it is', async () => {
    const controller = new AbortController();
    const context = new JobContext(controller.signal);
    const reason = new Error('enough');
    await expect(failing(reason, true, context, controller)).rejects.toBe(reason);
    expect(context.guestState).toBe('unusable');
  });
});
