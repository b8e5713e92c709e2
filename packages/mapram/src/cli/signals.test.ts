import { EventEmitter } from 'node:events';
import { expect, it } from 'vitest';
import { watchInterruption } from './signals.ts';

class FakeProcess extends EventEmitter {
  readonly exits: number[] = [];
  exit(status: number): void {
    this.exits.push(status);
  }
}

it.each([
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
])('the first %s cancels and a second one exits with %i', (name, status) => {
  const source = new FakeProcess();
  let notices = 0;
  const interruption = watchInterruption(source, () => (notices += 1));
  expect(interruption.status()).toBeUndefined();

  source.emit(name);
  expect(interruption.signal.aborted).toBe(true);
  expect(interruption.signal.reason).toMatchObject({
    code: 'E_CANCELLED',
    message: `interrupted by ${name}`,
  });
  expect(interruption.status()).toBe(status);
  expect(source.exits).toEqual([]);

  source.emit(name);
  expect(source.exits).toEqual([status]);
  expect(notices).toBe(1);
});

it('keeps the first signal as the reason when another kind follows', () => {
  const source = new FakeProcess();
  const interruption = watchInterruption(source, () => {});
  source.emit('SIGINT');
  source.emit('SIGTERM');
  expect(interruption.status()).toBe(130);
  expect(source.exits).toEqual([143]);
});

it('gives the signals back', () => {
  const source = new FakeProcess();
  watchInterruption(source, () => {}).release();
  expect(source.eventNames()).toEqual([]);
});
