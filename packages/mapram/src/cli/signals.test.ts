import { EventEmitter } from 'node:events';
import { expect, it } from 'vitest';
import { watchInterruption } from './signals.ts';

class FakeProcess extends EventEmitter {
  readonly exits: number[] = [];
  exit(status: number): void {
    this.exits.push(status);
  }
}

const SILENT = { first: () => {}, second: () => {} };

it.each([
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
])('the first %s cancels and a second one exits with %i', (name, status) => {
  const source = new FakeProcess();
  const notices: string[] = [];
  const interruption = watchInterruption(source, {
    first: () => notices.push('first'),
    second: () => notices.push('second'),
  });
  expect(interruption.status()).toBeUndefined();

  source.emit(name, name);
  expect(interruption.signal.aborted).toBe(true);
  expect(interruption.signal.reason).toMatchObject({
    code: 'E_CANCELLED',
    message: `interrupted by ${name}`,
  });
  expect(interruption.status()).toBe(status);
  expect(source.exits).toEqual([]);
  expect(notices).toEqual(['first']);

  source.emit(name, name);
  expect(source.exits).toEqual([status]);
  expect(notices).toEqual(['first', 'second']);
});

it('keeps the first signal as the reason when another kind follows', () => {
  const source = new FakeProcess();
  const interruption = watchInterruption(source, SILENT);
  source.emit('SIGINT', 'SIGINT');
  source.emit('SIGTERM', 'SIGTERM');
  expect(interruption.status()).toBe(130);
  expect(source.exits).toEqual([143]);
});

it('gives the signals back', () => {
  const source = new FakeProcess();
  watchInterruption(source, SILENT).release();
  expect(source.eventNames()).toEqual([]);
});
