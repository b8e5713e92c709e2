import { expect, it } from 'vitest';
import { describeWhat } from './report.ts';
import { sessionName, type What } from './session.ts';
import { STOCK_METHODS, stockWays } from './stock-save.ts';

const save: What = { operation: 'save', workload: 'dense', memory: 'small' };

it.each<[What, string, string]>([
  [save, 'save-dense', 'save dense'],
  [{ ...save, memory: 'hugetlb' }, 'save-dense-hugetlb', 'save dense, hugetlb memory'],
  [{ operation: 'save', workload: 'private' }, 'save-private', 'save private'],
  [{ operation: 'restore', workload: 'private' }, 'restore-private', 'restore private'],
  [
    { ...save, operation: 'restore', state: 'fresh' },
    'restore-dense-fresh',
    'restore dense into fresh memory',
  ],
  [
    { ...save, operation: 'restore', memory: 'huge', state: 'warm' },
    'restore-dense-huge-warm',
    'restore dense into warm huge memory',
  ],
])('%j is named', (what, name, words) => {
  expect(sessionName(what)).toBe(name);
  expect(describeWhat(what)).toBe(words);
});

it("QEMU's ways have channels where there is multifd", () =>
  expect(
    stockWays(STOCK_METHODS, [2, 8]).map(({ method, channels }) => `${method.type} ${channels}`),
  ).toEqual([
    'QEMU file: undefined',
    'QEMU mapped-ram undefined',
    'QEMU mapped-ram + multifd 2',
    'QEMU mapped-ram + multifd 8',
    'QEMU mapped-ram + multifd + direct-io 2',
    'QEMU mapped-ram + multifd + direct-io 8',
  ]));
