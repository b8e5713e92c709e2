import { expect, it } from 'vitest';
import { mapramType, sourceOf } from './mapram.ts';

it('is named by what is not as usual', () => {
  expect(mapramType({ engine: 'auto', copy: 'auto' })).toBe('mapram');
  expect(mapramType({ engine: 'blocking', copy: 'auto' })).toBe('mapram blocking');
  expect(mapramType({ engine: 'auto', copy: 'never' })).toBe('mapram, copy never');
});

it('is asked where most pages were when the disk took them', () => {
  expect(sourceOf({ copiedBytes: 8192, dataBytes: 1024 ** 3 })).toBe('memory');
  expect(sourceOf({ copiedBytes: 1024 ** 3, dataBytes: 1024 ** 3 })).toBe('buffers');
});
