import { expect, it } from 'vitest';
import { orderOf, warmUpOf } from './rounds.ts';

const CONTENDERS = [
  { type: 'ours', channels: 1 },
  { type: 'ours', channels: 4 },
  { type: 'theirs', channels: 1 },
  { type: 'theirs', channels: 16 },
  { type: 'dd' },
];

it('runs everybody once in each round', () => {
  for (let round = 1; round <= 12; round++)
    expect(new Set(orderOf(CONTENDERS, round))).toEqual(new Set(CONTENDERS));
  expect(orderOf([], 1)).toEqual([]);
});

it('gives nobody the same predecessor in all of three rounds', () => {
  for (const contender of CONTENDERS) {
    const before = [1, 2, 3].map((round) => {
      const order = orderOf(CONTENDERS, round);
      return order[order.indexOf(contender) - 1];
    });
    expect(new Set(before).size).toBeGreaterThan(1);
  }
});

it('warms up each type once, and fio once in all', () => {
  const run = () => Promise.reject(new Error('nobody runs here'));
  const contenders = [
    { type: 'ours', channels: 1, run },
    { type: 'ours', channels: 4, run },
    { type: 'fio 1 MiB x 16 x 1', run },
    { type: 'fio 4 MiB x 8 x 1', run },
    { type: 'dd', run },
  ];
  expect(warmUpOf(contenders)).toEqual([0, 2, 4].map((index) => contenders[index]));
});
