import { describe, expect, it } from 'vitest';
import { drawChart, niceTop } from './chart.ts';

describe('the top of the y axis', () => {
  it.each([
    [0, 1],
    [0.37, 0.4],
    [1, 1],
    [2150, 4000],
    [5.9, 6],
    [9000, 10000],
  ])('of %d is %d', (value, top) => expect(niceTop(value)).toBeCloseTo(top, 9));
});

describe('a chart', () => {
  const svg = drawChart({
    title: 'A < B & C',
    xTitle: 'channels',
    yTitle: 'MB/s',
    places: ['1', '2'],
    lines: [
      { name: 'ours', values: [10, undefined], color: 'blue' },
      { name: 'ceiling', values: 20, color: 'black', dashed: true },
    ],
  });

  it('escapes its texts', () => expect(svg).toContain('A &lt; B &amp; C'));
  it('marks measured places only', () => expect(svg.match(/<circle/g)).toHaveLength(1));
  it('draws a single value across', () =>
    expect(svg).toMatch(/<line x1="72" x2="640" y1="48.0" y2="48.0" fill="none" stroke="black"/));
});
