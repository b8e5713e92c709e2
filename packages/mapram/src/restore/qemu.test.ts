import { describe, expect, it } from 'vitest';
import { MapramError } from '../errors.ts';
import { requireLoadable } from './qemu.ts';
import type { Restoring } from './restoring.ts';
import { planRunState } from './run-state.ts';

/** A restore into a QEMU that could load an ordinary image. */
function restoring(capabilities: string[], runState: string): Restoring {
  return {
    owner: { link: { monitor: { execute: async () => [] } } },
    waiting: { capabilities: new Map([['mapped-ram', false]]), parameters: {} },
    opened: { image: { capabilities } },
    runState: planRunState(runState, undefined),
  } as unknown as Restoring;
}

describe('what QEMU’s own loader is asked to load', () => {
  const memory = new MapramError('E_PERMISSION', 'no');

  it('is an ordinary image', async () => {
    await expect(requireLoadable(restoring(['mapped-ram'], 'paused'), [], memory)).resolves.toBeUndefined();
  });

  it.each([
    ['x-ignore-shared', ['mapped-ram', 'x-ignore-shared'], 'paused'],
    ['run state debug', ['mapped-ram'], 'debug'],
  ])('is none with %s', async (named, capabilities, runState) => {
    await expect(requireLoadable(restoring(capabilities, runState), [], memory)).rejects.toMatchObject({
      code: 'E_GUEST_UNSUPPORTED',
      message: expect.stringMatching(new RegExp(`${named}.*method fill`)),
    });
  });
});
