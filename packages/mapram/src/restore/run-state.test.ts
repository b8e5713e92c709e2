import { expect, it } from 'vitest';
import { planRunState } from './run-state.ts';

it.each(['debug', 'save-vm', 'restore-vm', 'inmigrate', 'finish-migrate', 'colo', 'preconfig', 'nonsense'])(
  'a guest in state %s, which QEMU does not take up, is as good as paused',
  (state) => {
    for (const then of [undefined, 'pause', 'resume'] as const) {
      const expected = { shallRun: then === 'resume', recordsPaused: true, unloadable: state };
      expect(planRunState(state, then)).toEqual(expected);
    }
  },
);

it.each([
  ['running', undefined, true, false],
  ['running', 'pause', false, true],
  ['suspended', undefined, true, false],
  ['suspended', 'pause', false, true],
  ['paused', undefined, false, false],
  ['paused', 'resume', true, false],
  ['prelaunch', 'pause', false, true],
  ['shutdown', 'pause', false, false],
  ['guest-panicked', undefined, false, false],
  [undefined, undefined, true, false],
  [undefined, 'pause', false, false],
] as const)('%s with --then %s', (state, then, shallRun, recordsPaused) => {
  expect(planRunState(state, then)).toEqual({ shallRun, recordsPaused, unloadable: undefined });
});

it.each(['shutdown', 'internal-error'])('a guest in state %s cannot be resumed', (state) => {
  expect(() => planRunState(state, 'resume')).toThrow(
    expect.objectContaining({ code: 'E_USAGE', field: 'then' }),
  );
});
