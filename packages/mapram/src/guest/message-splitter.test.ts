import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MessageSplitter } from './message-splitter.ts';

describe('MessageSplitter', () => {
  it('gives the same objects however the bytes are cut, on one line or on many', () => {
    fc.assert(
      fc.property(
        fc.array(fc.dictionary(fc.string({ unit: 'binary' }), fc.jsonValue()), { maxLength: 4 }),
        fc.integer({ min: 0, max: 4 }),
        fc.infiniteStream(fc.integer({ min: 1, max: 40 })),
        (objects, indent, sizes) => {
          const texts = objects.map((object) => JSON.stringify(object, null, indent));
          const bytes = Buffer.from(texts.map((text) => `${text}\r\n`).join(''));
          const splitter = new MessageSplitter();
          const found: string[] = [];
          for (let start = 0; start < bytes.length; ) {
            const size = sizes.next().value as number;
            found.push(...splitter.push(bytes.subarray(start, start + size)));
            start += size;
          }
          expect(found).toEqual(texts);
        },
      ),
      { numRuns: 50 },
    );
  }, 20_000);

  it('is not led astray by brackets and quotes within strings', () => {
    const text = String.raw`{"a": "}\"]\\", "b": ["\\\"{"]}`;
    expect(new MessageSplitter().push(Buffer.from(`${text}\n`))).toEqual([text]);
  });

  it.each(['220 mail ESMTP\r\n', '[1, 2]\n', '"text"', '}'])('refuses %j', (text) => {
    expect(() => new MessageSplitter().push(Buffer.from(text))).toThrow('does not speak QMP');
  });

  it('refuses an object without end', () => {
    const splitter = new MessageSplitter();
    splitter.push(Buffer.from('{"a": "'));
    const mebibyte = Buffer.alloc(2 ** 20, 'x');
    expect(() => {
      for (let count = 0; count < 20; count += 1) splitter.push(mebibyte);
    }).toThrow(expect.objectContaining({ code: 'E_QMP' }));
  });
});
