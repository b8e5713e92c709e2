import { expect, it } from 'vitest';
import { MAIN_BLOCK } from './guest-memory.ts';
import { mapramType, sourceOf } from './mapram.ts';

it('is named by what is not as usual', () => {
  expect(mapramType({ engine: 'auto', copy: 'auto' })).toBe('mapram');
  expect(mapramType({ engine: 'blocking', copy: 'auto' })).toBe('mapram blocking');
  expect(mapramType({ engine: 'auto', copy: 'never' })).toBe('mapram, copy never');
});

it('is asked where the pages of the main block came from', () => {
  const blocks = [
    { name: 'vga.vram', source: 'pool' },
    { name: MAIN_BLOCK, source: 'guest' },
  ];
  expect(sourceOf({ blocks })).toEqual({ source: 'guest' });
  expect(sourceOf({ blocks: [{ name: MAIN_BLOCK }] })).toEqual({});
  expect(sourceOf({})).toEqual({});
});
