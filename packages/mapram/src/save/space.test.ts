import { describe, expect, it } from 'vitest';
import { spaceBound } from './space.ts';

const KIB = 1024;
const GUEST = [{ usedLength: 1024 ** 3 }];
const EMPTY = spaceBound(GUEST, [new Float64Array(0)]);

describe('spaceBound', () => {
  it('has room for bitmaps and devices even if there is no data', () => {
    expect(EMPTY).toBeGreaterThan(1024 ** 3 / 4096 / 8 + 1024 ** 2);
  });

  it('counts short holes between data as written, and no others', () => {
    const extents = [...[1024 * KIB, 4 * KIB, 0], ...[1092 * KIB, 4 * KIB, 1], ...[1164 * KIB, 4 * KIB, 0]];
    expect(spaceBound(GUEST, [Float64Array.from(extents)]) - EMPTY).toBe(76 * KIB);
  });

  it('does not join blocks', () => {
    const list = Float64Array.of(0, 4 * KIB, 0);
    const two = [...GUEST, ...GUEST];
    const empty = spaceBound(two, [new Float64Array(0), new Float64Array(0)]);
    expect(spaceBound(two, [list, list]) - empty).toBe(8 * KIB);
  });
});
