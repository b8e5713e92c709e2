import { describe, expect, it } from 'vitest';
import { median, ratioWithinRounds } from './statistics.ts';

describe('median', () => {
  it('is the middle, or the mean of the two middle ones', () => {
    expect(median([9, 1, 5])).toBe(5);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([7])).toBe(7);
  });

  it('leaves its input as it was', () => {
    const values = [3, 1, 2];
    median(values);
    expect(values).toEqual([3, 1, 2]);
  });

  it('does not exist for nothing', () => expect(() => median([])).toThrow());
});

describe('ratio within rounds', () => {
  const at = (...values: number[]) => values.map((value, index) => ({ round: index + 1, value }));

  it('is formed round by round: a round that is slow for both changes nothing', () => {
    expect(ratioWithinRounds(at(20, 2, 20), at(10, 1, 10))).toBe(2);
  });

  it('leaves out rounds that only one side has', () => {
    expect(ratioWithinRounds([{ round: 2, value: 6 }], at(1, 2, 3))).toBe(3);
    expect(ratioWithinRounds(at(1), [{ round: 2, value: 1 }])).toBeUndefined();
  });
});
