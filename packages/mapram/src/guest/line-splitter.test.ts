import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LineSplitter } from './line-splitter.ts';

describe('LineSplitter', () => {
  it('gives the same lines however the bytes are cut', () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ unit: 'grapheme', minLength: 1 }).filter((line) => /^\S+$/u.test(line))),
        fc.infiniteStream(fc.integer({ min: 1, max: 9 })),
        (lines, sizes) => {
          const bytes = Buffer.from(lines.map((line) => `${line}\r\n`).join(''));
          const splitter = new LineSplitter();
          const found: string[] = [];
          for (let start = 0; start < bytes.length; ) {
            const size = sizes.next().value as number;
            found.push(...splitter.push(bytes.subarray(start, start + size)));
            start += size;
          }
          expect(found).toEqual(lines);
        },
      ),
    );
  });

  it('refuses a line without end', () => {
    const splitter = new LineSplitter();
    const mebibyte = Buffer.alloc(2 ** 20, 'x');
    expect(() => {
      for (let count = 0; count < 20; count += 1) splitter.push(mebibyte);
    }).toThrow(expect.objectContaining({ code: 'E_QMP' }));
  });
});
