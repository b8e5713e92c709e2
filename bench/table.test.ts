import { describe, expect, it } from 'vitest';
import type { Measurement, Run } from './measurement.ts';
import { DIRECT_STOCK_TYPE } from './stock-save.ts';
import { summarize } from './summary.ts';
import { markdownTable, plainTable, seriesTable } from './table.ts';

const GIB = 2 ** 30;

function run(type: string, milliseconds: number, channels?: number): Run {
  const measurement: Measurement = {
    milliseconds,
    cpuSeconds: 1,
    kernelCpuSeconds: 0,
    dataBytes: GIB / 2,
    details: {},
  };
  return { type, ...(channels === undefined ? {} : { channels }), round: 1, measurement };
}

describe('the table of series', () => {
  const runs = [run('mapram', 500, 4), run(DIRECT_STOCK_TYPE, 1000, 4), run('fio 4 MiB', 400)];
  const [head = [], ours = [], theirs = [], fio = []] = seriesTable(summarize(runs, GIB), runs, GIB);
  const cell = (row: string[], name: string) => row[head.indexOf(name)];

  it('counts all RAM for guests and the data alone for the disk', () => {
    expect([ours, theirs, fio].map((row) => cell(row, 'MB/s'))).toEqual(['2147', '1074', '1342']);
    expect(cell(fio, 'pages/s')).toBe('');
  });

  it('sets rates of data against the best of fio', () => {
    expect([ours, theirs, fio].map((row) => cell(row, '% of ceiling'))).toEqual(['80', '40', '100']);
  });

  it('has ratios for mapram alone', () => {
    expect([ours, theirs, fio].map((row) => cell(row, 'x QEMU'))).toEqual(['2.00', '', '']);
  });
});

describe('the forms of a table', () => {
  const table = [
    ['type', 'ms'],
    ['a', '10'],
    ['longer', '9'],
  ];

  it('aligns numbers to the right', () =>
    expect(plainTable(table)).toBe(['type    ms', 'a       10', 'longer   9'].join('\n')));

  it('is Markdown where asked for', () =>
    expect(markdownTable(table)).toBe(
      ['| type   | ms |', '|--------|---:|', '| a      | 10 |', '| longer |  9 |'].join('\n'),
    ));
});
