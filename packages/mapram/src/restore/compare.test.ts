import { describe, expect, it } from 'vitest';
import type { WaitingGuest } from '../guest/incoming.ts';
import type { Image } from '../image/index.ts';
import { matchGuest } from './compare.ts';

type Sizes = Record<string, number | [used: number, max: number]>;

function image(sizes: Sizes, machine = 'pc-q35-10.0'): Image {
  const blocks = Object.entries(sizes).map(([name, usedLength]) => ({ name, usedLength }));
  return { machine, blocks } as unknown as Image;
}

function guest(sizes: Sizes): WaitingGuest {
  const blocks = Object.entries(sizes).map(([name, size], index) => {
    const [usedLength, maxLength] = typeof size === 'number' ? [size, size] : size;
    return { name, usedLength, maxLength, address: index * 0x10000 };
  });
  return { machine: 'pc-q35-10.0', blocks, capabilities: new Map(), parameters: {} };
}

describe('matchGuest', () => {
  it('gives the guest’s blocks in the image’s order', () => {
    const { blocks, resized } = matchGuest(image({ b: 4096, a: 8192 }), guest({ a: 8192, b: 4096 }));
    expect(blocks.map(({ name, address }) => [name, address])).toEqual([
      ['b', 0x10000],
      ['a', 0],
    ]);
    expect(resized).toEqual([]);
  });

  it('takes other lengths of a block that QEMU can resize, up to its maximum', () => {
    const waiting = guest({ rom: [8192, 16384] });
    for (const length of [4096, 16384]) {
      const { blocks, resized } = matchGuest(image({ rom: length }), waiting);
      expect(blocks[0]?.usedLength).toBe(length);
      expect(resized).toEqual(['rom']);
    }
  });

  const refused: [string, Image, WaitingGuest, string, RegExp][] = [
    ['machine', image({ a: 4096 }, 'pc-i440fx-10.0'), guest({ a: 4096 }), 'machine', /i440fx.*q35/],
    ['version', image({ a: 4096 }, 'pc-q35-9.2'), guest({ a: 4096 }), 'machine', /9\.2.*10\.0/],
    ['missing', image({ a: 4096, b: 4096 }), guest({ a: 4096 }), 'blocks', /it has RAM block b/],
    ['extra', image({ a: 4096 }), guest({ a: 4096, b: 4096 }), 'blocks', /it lacks RAM block b/],
    ['larger', image({ a: 8192 }), guest({ a: 4096 }), 'usedLength', /block a has 8192.*4096/],
    ['smaller', image({ a: 4096 }), guest({ a: 8192 }), 'usedLength', /block a has 4096.*8192/],
    ['beyond', image({ a: 32768 }), guest({ a: [8192, 16384] }), 'usedLength', /at most 16384/],
  ];
  it.each(refused)('refuses another one: %s', (_, saved, waiting, field, message) => {
    expect(() => matchGuest(saved, waiting)).toThrow(
      expect.objectContaining({ code: 'E_GUEST_MISMATCH', field, message: expect.stringMatching(message) }),
    );
  });
});
