import { describe, expect, it } from 'vitest';
import { parseChannels, parseNames, parseSize } from './lists.ts';

describe('channel lists', () => {
  it.each([
    ['1..128', [1, 2, 4, 8, 16, 32, 64, 128]],
    ['1,2,8', [1, 2, 8]],
    ['8,1,8', [1, 8]],
    ['3..20', [3, 4, 8, 16, 20]],
    ['4..4', [4]],
    ['1..4,7', [1, 2, 4, 7]],
  ])('%s', (text, counts) => expect(parseChannels(text)).toEqual(counts));

  it.each(['', '0', '129', '8..1', '1..', '1...4', '-1', '2.5', '1,,2', 'all'])('refuses %s', (text) =>
    expect(() => parseChannels(text)).toThrow(),
  );
});

describe('sizes', () => {
  it('counts in powers of 1024', () => {
    expect(parseSize('256M')).toBe(256 * 2 ** 20);
    expect(parseSize('2G')).toBe(2 ** 31);
    expect(parseSize('12GiB')).toBe(12 * 2 ** 30);
  });

  it.each(['', '2', '0', '6M', '1.5G', '2g', 'G'])('refuses %s', (text) =>
    expect(() => parseSize(text)).toThrow(),
  );
});

describe('names', () => {
  const names = ['save', 'restore'] as const;
  it('takes lists and all', () => {
    expect(parseNames(names, 'restore')).toEqual(['restore']);
    expect(parseNames(names, 'restore,save')).toEqual(['restore', 'save']);
    expect(parseNames(names, 'all')).toEqual(['save', 'restore']);
    expect(parseNames(names, 'save,save')).toEqual(['save']);
  });

  it('says what is not known', () =>
    expect(() => parseNames(names, 'save,load')).toThrow(/'load' is none of save, restore/));
});
