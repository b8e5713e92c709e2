import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ByteWriter } from './byte-writer.ts';
import { encodeImage } from './encode.ts';
import { PAGE_BYTES, RAM_SECTION_ID, SECTION } from './format.ts';
import { layoutImage } from './layout.ts';
import {
  bitmapOf,
  deviceSection,
  deviceState,
  fileOf,
  globalState,
  read,
  type Sample,
  sample,
} from './read.fixture.ts';
import { encodeText } from './text.ts';
import { minimalVmdesc } from './vmdesc.ts';

/** A copy of the sample's file in which `remove` bytes at `offset` give way to `insert`. */
function spliced(
  file: Uint8Array,
  offset: number,
  remove: number,
  insert: Uint8Array = new Uint8Array(0),
): Uint8Array {
  return new ByteWriter()
    .bytes(file.subarray(0, offset))
    .bytes(insert)
    .bytes(file.subarray(offset + remove))
    .toBytes();
}

function viewOf(file: Uint8Array): DataView {
  return new DataView(file.buffer, file.byteOffset, file.byteLength);
}

/** Where the 28-byte header of block `index` begins. */
function headerAt({ layout }: Sample, index: number): number {
  return (layout.blocks[index]?.bitmapOffset as number) - 28;
}

function refusal(field: string, offset?: number): unknown {
  const at = offset === undefined ? {} : { offset };
  return expect.objectContaining({ code: 'E_IMAGE_INVALID', field, ...at });
}

const namesArbitrary = fc.uniqueArray(
  fc.string({ minLength: 1, maxLength: 12, unit: 'grapheme' }).filter((name) => /^\P{Cc}+$/u.test(name)),
  { minLength: 1, maxLength: 4 },
);

test('what the writer writes, the reader reads', () => {
  fc.assert(
    fc.property(
      namesArbitrary,
      fc.integer({ min: 0, max: 5000 }),
      fc.infiniteStream(fc.uniqueArray(fc.nat(200), { maxLength: 40 })),
      (names, base, bitStreams) => {
        const blocks = names.map((name, index) => ({ name, usedLength: (67 * index + 3) * PAGE_BYTES }));
        const layout = layoutImage({ machine: 'pc-q35-10.0', blocks, base });
        const bitmaps = blocks.map(({ usedLength }) => {
          const [pages] = bitStreams.take(1);
          return bitmapOf(
            usedLength,
            (pages ?? []).filter((page) => page < usedLength / PAGE_BYTES),
          );
        });
        const image = read(fileOf(encodeImage({ layout, bitmaps, deviceState: deviceState() })), base);
        expect(image).toMatchObject({
          base,
          machine: 'pc-q35-10.0',
          capabilities: ['mapped-ram'],
          trailingBytes: 0,
        });
        expect(image).toMatchObject({ ramSectionId: RAM_SECTION_ID, runState: 'paused', uuid: undefined });
        expect(image.deviceState).toEqual(deviceState());
        expect(
          image.blocks.map(({ setPages: _, headerVersion: __, bitmap, ...block }) => ({ block, bitmap })),
        ).toEqual(layout.blocks.map((block, index) => ({ block, bitmap: bitmaps[index] })));
      },
    ),
    { numRuns: 30 },
  );
});

test('anything may follow the stream', () => {
  const made = sample();
  const trailing = fileOf({ parts: made.parts, length: made.length + 5000 }).fill(0x7b, made.length);
  expect(read(trailing)).toMatchObject({ end: made.length, trailingBytes: 5000 });
  const twice = fileOf({ parts: made.parts, length: made.length * 2 + 1 });
  twice.set(fileOf(made), made.length);
  expect(read(twice)).toMatchObject({ end: made.length, deviceState: deviceState() });
});

/** Bytes of a device that look like the end of the device state, or nearly so. */
const plantedEnd = fc
  .tuple(fc.constantFrom('{"devices":[]}', '{"devices":[]', '{}', '{'), fc.integer({ min: -1, max: 1 }))
  .map(([json, excess]) => {
    const length = Math.max(json.length + excess, 0);
    const end = new ByteWriter().u8(SECTION.FOOTER).be32(9).u8(SECTION.EOF).u8(SECTION.VMDESCRIPTION);
    return end.be32(length).bytes(encodeText(json)).toBytes();
  });

const deviceBytes = fc
  .array(fc.oneof(fc.uint8Array({ maxLength: 40 }), plantedEnd, fc.constant(globalState('running'))), {
    maxLength: 8,
  })
  .map((pieces) => pieces.reduce((writer, piece) => writer.bytes(piece), new ByteWriter()).toBytes());

test('no bytes of a device make an end where there is none', () => {
  const { layout, bitmaps } = sample();
  fc.assert(
    fc.property(deviceBytes, fc.boolean(), (bytes, isDescribed) => {
      const planted = new ByteWriter()
        .bytes(deviceSection(9, 'e1000e', bytes))
        .bytes(deviceState())
        .toBytes();
      const vmdesc = isDescribed
        ? encodeText('{"devices": [{"name": "timer"}], "page_size": 4096}')
        : undefined;
      const encoded = encodeImage({ layout, bitmaps, deviceState: planted, vmdesc });
      const image = read(fileOf(encoded));
      expect(Buffer.compare(image.deviceState, planted)).toBe(0);
      expect(image).toMatchObject({ runState: 'paused', end: encoded.length, trailingBytes: 0 });
    }),
    { numRuns: 300 },
  );
});

test('where more follows the stream, an end in front of the run state is none', () => {
  const { layout, bitmaps } = sample();
  const end = new ByteWriter().u8(SECTION.FOOTER).be32(9).u8(SECTION.EOF).u8(SECTION.VMDESCRIPTION);
  const bytes = end.longText('{"devices":[]}').toBytes();
  const planted = new ByteWriter()
    .bytes(deviceSection(9, 'e1000e', bytes))
    .bytes(deviceState())
    .toBytes();
  const { parts, length } = encodeImage({ layout, bitmaps, deviceState: planted });
  const image = read(fileOf({ parts, length: length + 100 }));
  expect(image).toMatchObject({ deviceState: planted, end: length, trailingBytes: 100 });
  const bare = fileOf({ parts, length }).subarray(
    0,
    length - minimalVmdesc('pc-q35-10.0', ['mapped-ram']).length - 5,
  );
  expect(read(bare)).toMatchObject({ deviceState: planted, vmdesc: undefined });
});

test('a device state without a run state ends at its first end', () => {
  const { layout, bitmaps } = sample();
  const timer = new ByteWriter()
    .bytes(deviceSection(0, 'timer', new Uint8Array(9)))
    .u8(0)
    .toBytes();
  const { parts, length } = encodeImage({ layout, bitmaps, deviceState: timer });
  const image = read(fileOf({ parts, length: length + 100 }));
  expect(image).toMatchObject({ deviceState: timer, end: length, runState: undefined });
});

test('many false ends are passed over quickly', () => {
  const { layout, bitmaps } = sample();
  const one = new ByteWriter().u8(SECTION.FOOTER).be32(9).u8(SECTION.EOF).u8(SECTION.VMDESCRIPTION);
  const bytes = Buffer.alloc(
    4_000_000,
    one.be32(1_000_000).bytes(encodeText('{"devices":[],"a":"')).toBytes(),
  );
  const planted = new ByteWriter()
    .bytes(deviceSection(9, 'gpu', bytes))
    .bytes(deviceState())
    .toBytes();
  const { parts, length } = encodeImage({ layout, bitmaps, deviceState: planted });
  for (const trailing of [0, 1]) {
    const started = performance.now();
    expect(read(fileOf({ parts, length: length + trailing })).deviceState.length).toBe(planted.length);
    expect(performance.now() - started).toBeLessThan(2000);
  }
});

test('a device state larger than the first read is read whole', () => {
  const { layout, bitmaps } = sample();
  const noise = new Uint8Array(3_000_000).fill(0x7b);
  const big = new ByteWriter()
    .bytes(deviceState().subarray(0, -1))
    .bytes(noise)
    .bytes(deviceState('running'))
    .toBytes();
  const image = read(fileOf(encodeImage({ layout, bitmaps, deviceState: big })));
  expect(image.runState).toBe('running');
  expect(Buffer.compare(image.deviceState, big)).toBe(0);
});

test('a missing description is accepted only where the file ends in a section footer and EOF', () => {
  const { layout, ...made } = sample();
  const file = fileOf(made);
  const vmdescOffset = read(file).end - (read(file).vmdesc?.length as number) - 5;
  expect(read(file.subarray(0, vmdescOffset))).toMatchObject({ vmdesc: undefined, end: vmdescOffset });
  for (let length = layout.tailOffset; length < file.length; length += 1) {
    if (length === vmdescOffset) continue;
    expect(() => read(file.subarray(0, length))).toThrow(
      expect.objectContaining({ code: 'E_IMAGE_INVALID' }),
    );
  }
});

test('header version 0 is accepted, 2 is not', () => {
  const made = sample();
  const file = fileOf(made);
  viewOf(file).setUint32(headerAt(made, 0), 0);
  expect(read(file).blocks[0]?.headerVersion).toBe(0);
  viewOf(file).setUint32(headerAt(made, 0), 2);
  expect(() => read(file)).toThrow(refusal('header version', headerAt(made, 0)));
});

test('PART, COMMAND and END may be missing, and RAM may be one full section', () => {
  const made = sample();
  const file = fileOf(made);
  const devices = made.layout.tailOffset + 13 + 18 + 5 + 18;
  const short = spliced(file, made.layout.tailOffset + 13, devices - made.layout.tailOffset - 13);
  short[71] = 0x04;
  expect(read(short)).toMatchObject({ deviceState: deviceState(), runState: 'paused' });
  expect(read(spliced(file, made.layout.tailOffset + 13, 18)).deviceState).toEqual(deviceState());
});

test('bitmaps may stand elsewhere, with or without a copy left behind', () => {
  const made = sample();
  const { bitmapOffset } = made.layout.blocks[0] as { bitmapOffset: number };
  const bitmap = made.bitmaps[0] as Uint8Array;
  for (const erase of [true, false]) {
    const file = new ByteWriter().bytes(fileOf(made)).bytes(bitmap).toBytes();
    viewOf(file).setBigUint64(headerAt(made, 0) + 12, BigInt(made.length));
    if (erase) file.fill(0, bitmapOffset, bitmapOffset + bitmap.length);
    expect(read(file).blocks[0]).toMatchObject({ bitmap, bitmapOffset: made.length });
  }
});

test('a bitmap elsewhere is refused where another one stands in its place, or pages are', () => {
  const made = sample();
  const { bitmapOffset, pagesOffset } = made.layout.blocks[0] as {
    bitmapOffset: number;
    pagesOffset: number;
  };
  const bitmap = made.bitmaps[0] as Uint8Array;
  const place = headerAt(made, 0) + 12;
  const moved = (offset: number): Uint8Array => {
    const file = new ByteWriter().bytes(fileOf(made)).bytes(bitmap).toBytes();
    viewOf(file).setBigUint64(place, BigInt(offset));
    return file;
  };
  const otherCopy = moved(made.length);
  otherCopy[bitmapOffset] = 0x55;
  expect(() => read(otherCopy)).toThrow(refusal('bitmap_offset', place));
  for (const offset of [pagesOffset + 2 * PAGE_BYTES, made.layout.blocks[1]?.pagesOffset as number]) {
    const inPages = moved(offset);
    inPages.set(bitmap, offset);
    inPages.fill(0, bitmapOffset, bitmapOffset + bitmap.length);
    expect(() => read(inPages)).toThrow(refusal('bitmap_offset', place));
  }
  const shifted = moved(bitmapOffset + 8);
  shifted.fill(0, bitmapOffset, bitmapOffset + bitmap.length);
  shifted.set(bitmap, bitmapOffset + 8);
  expect(() => read(shifted)).toThrow(refusal('bitmap_offset', place));
});

test('no flip in the fields of a header gives a block another bitmap, other pages or another length', () => {
  const blocks = [
    { name: 'full', usedLength: 0x100000 },
    { name: 'empty', usedLength: 0x80000 },
    { name: 'sparse', usedLength: 0x200000 },
    { name: 'tiny', usedLength: 0x1000 },
  ];
  const layout = layoutImage({ machine: 'pc-q35-10.0', blocks });
  const pages = [Array.from({ length: 256 }, (_, page) => page), [], [200, 511], [0]];
  const bitmaps = blocks.map(({ usedLength }, index) => bitmapOf(usedLength, pages[index] as number[]));
  const file = fileOf(encodeImage({ layout, bitmaps, deviceState: deviceState() }));
  // Pages full of ones make a bitmap of which every bit would count.
  for (const { pagesOffset } of layout.blocks) file.fill(0xff, pagesOffset, pagesOffset + PAGE_BYTES);
  const facts = () =>
    read(file).blocks.map(({ usedLength, bitmap, pagesOffset, setPages }) => [
      usedLength,
      setPages === 0 ? 0 : pagesOffset,
      Buffer.from(bitmap).toString('hex'),
    ]);
  const expected = facts();
  for (const { bitmapOffset } of layout.blocks) {
    for (let at = bitmapOffset - 36; at < bitmapOffset; at += 1) {
      for (let bit = 0; bit < 8; bit += 1) {
        file[at] = (file[at] as number) ^ (1 << bit);
        let found: unknown;
        try {
          found = facts();
        } catch (error) {
          expect(error).toMatchObject({ code: 'E_IMAGE_INVALID' });
        }
        if (found !== undefined) expect(found, `bit ${bit} of byte ${at}`).toEqual(expected);
        file[at] = (file[at] as number) ^ (1 << bit);
      }
    }
  }
});

test('pages may lie at any page boundary', () => {
  const made = sample();
  const [first, second] = made.layout.blocks as unknown as [
    { pagesOffset: number },
    { pagesOffset: number; headerOffset: number },
  ];
  const file = fileOf(made);
  const packed = spliced(file, 0x1000, first.pagesOffset - 0x1000);
  const moved = first.pagesOffset - 0x1000;
  const header = headerAt(made, 1) - moved;
  viewOf(packed).setBigUint64(headerAt(made, 0) + 20, 0x1000n);
  viewOf(packed).setBigUint64(header + 12, BigInt(header + 28));
  viewOf(packed).setBigUint64(header + 20, BigInt(second.pagesOffset - moved));
  expect(read(packed).blocks.map(({ pagesOffset }) => pagesOffset)).toEqual([
    0x1000,
    second.pagesOffset - moved,
  ]);
});

test('an image that was copied to another offset is refused with the offset that it was made for', () => {
  const file = fileOf(sample());
  const pasted = spliced(file, 0, 0, new Uint8Array(8192));
  expect(() => read(pasted, 8192)).toThrow(/would fit an image at 0: was this one copied/);
  const cutOut = fileOf(sample({ base: 8192 })).subarray(8192);
  expect(() => read(cutOut)).toThrow(/would fit an image at 8192: was this one copied/);
  expect(() => read(file.with(0x7b, 1))).not.toThrow(/copied/);
});

test('subsections for page bits and UUID are read', () => {
  const file = fileOf(sample());
  const uuid = Uint8Array.from({ length: 16 }, (_, index) => index * 17);
  const bits = new ByteWriter().u8(5).shortText('configuration/target-page-bits').be32(1).be32(12).toBytes();
  const extra = new ByteWriter()
    .bytes(bits)
    .u8(5)
    .shortText('configuration/uuid')
    .be32(1)
    .bytes(uuid)
    .toBytes();
  // The record, and so its bitmap, move into the hole in front of the pages.
  const grown = spliced(spliced(file, 71, 0, extra), 0x1000, extra.length);
  const header = 0x8b - 28 + extra.length;
  viewOf(grown).setBigUint64(header + 12, BigInt(header + 28));
  expect(read(grown)).toMatchObject({ targetPageBits: 12, uuid: '00112233-4455-6677-8899-aabbccddeeff' });
  grown[71 + bits.length - 1] = 13;
  expect(() => read(grown)).toThrow(refusal('target-page-bits', 71 + bits.length - 4));
});

test('streams that are no mapped-ram images are told apart', () => {
  const file = fileOf(sample());
  expect(() => read(spliced(file, 24, 47))).toThrow(refusal('capabilities', 24));
  expect(() => read(file.with(0, 0x7f))).toThrow(refusal('magic', 0));
  expect(() => read(spliced(file, 8, 63))).toThrow(refusal('configuration', 8));
  expect(() => read(file, 4)).toThrow(refusal('magic', 4));
  expect(() => read(file, file.length)).toThrow(refusal('base'));
  expect(() => read(file.subarray(0, 6))).toThrow(refusal('version', 4));
});

test('an image without its shared blocks is refused by the block’s name', () => {
  const made = sample();
  const file = fileOf(made);
  file[0x3b] = 2;
  const shared = new ByteWriter().shortText('x-ignore-shared').toBytes();
  const withGpa = spliced(spliced(file, 0x6f, 0, new Uint8Array(8)), 0x3c, 0, shared);
  const header = headerAt(made, 0) + 8 + shared.length;
  viewOf(withGpa).setBigUint64(header + 12, 0n);
  viewOf(withGpa).setBigUint64(header + 20, 0n);
  expect(() => read(withGpa)).toThrow(refusal('bitmap_offset', header + 12));
  expect(() => read(withGpa)).toThrow(/pc\.ram.*x-ignore-shared/);
});

test('device state in front of RAM and other iterable devices are refused', () => {
  const made = sample();
  const file = fileOf(made);
  const early = file.slice();
  early.set(encodeText('abc'), 77);
  expect(() => read(early)).toThrow(refusal('section name', 76));
  const vfio = new ByteWriter().u8(1).be32(9).shortText('vfio').be32(0).be32(1).toBytes();
  const tail = made.layout.tailOffset + 13;
  expect(() => read(spliced(file, tail, 0, vfio))).toThrow(refusal('section type', tail));
});

test('a truncated page area names the block and the last page it needs', () => {
  const made = sample();
  const [first, second] = made.layout.blocks as unknown as [{ pagesOffset: number }, { pagesOffset: number }];
  const file = fileOf(made);
  const cut = (length: number) => () => read(file.subarray(0, length));
  expect(cut(first.pagesOffset + 5000)).toThrow(refusal('pages', first.pagesOffset + 287 * PAGE_BYTES));
  expect(cut(first.pagesOffset + 5000)).toThrow(/block pc\.ram/);
  expect(cut(second.pagesOffset + 5000)).toThrow(refusal('pages', second.pagesOffset + 31 * PAGE_BYTES));
});

test('an interrupted save is called so', () => {
  const made = sample();
  const file = fileOf({ ...made, parts: made.parts.filter(({ bytes }) => !made.bitmaps.includes(bytes)) });
  expect(read(file).blocks.map(({ setPages }) => setPages)).toEqual([0, 0]);
  expect(() => read(file.subarray(0, made.layout.tailOffset + 13))).toThrow(/was the save interrupted\?/);
});

test('a wrong total is found', () => {
  const file = fileOf(sample());
  for (const change of [-PAGE_BYTES, PAGE_BYTES, -0x20000, 0x20000]) {
    const wrong = file.slice();
    viewOf(wrong).setBigUint64(0x58, BigInt(0x140004 + change));
    expect(() => read(wrong)).toThrow(expect.objectContaining({ code: 'E_IMAGE_INVALID' }));
  }
});

test.each([
  ['block name length', 0x60, 1, 0],
  ['used_length', 0x67, 8, 0x120800],
  ['used_length', 0x67, 8, 0],
  ['page_size', 0x73, 8, 0],
  ['page_size', 0x73, 8, 8192],
  ['bitmap_offset', 0x7b, 8, 0x8a],
  ['bitmap_offset', 0x7b, 8, 0x100000 + 4096],
  ['bitmap_offset', 0x7b, 8, 2 ** 40],
  ['bitmap_offset', 0x7b, 8, 0xfff00],
  ['bitmap_offset', 0x7b, 8, 0x8c],
  ['pages_offset', 0x83, 8, 0x100200],
])('a bad %s at %i is refused there', (field, offset, length, value) => {
  const file = fileOf(sample());
  if (length === 1) viewOf(file).setUint8(offset, value);
  else viewOf(file).setBigUint64(offset, BigInt(value));
  expect(() => read(file)).toThrow(refusal(field, offset));
});

test('two blocks of one name are refused', () => {
  const made = sample();
  const second = made.layout.blocks[1] as { headerOffset: number };
  const file = fileOf(made);
  // Shorten the second name in place to "pc.ram" by moving the rest of the record down.
  const record = file.slice(second.headerOffset + 21, second.headerOffset + 21 + 36);
  file.set(new ByteWriter().shortText('pc.ram').bytes(record).toBytes(), second.headerOffset);
  viewOf(file).setBigUint64(second.headerOffset + 27, BigInt(second.headerOffset + 43));
  file.fill(0, second.headerOffset + 43, second.headerOffset + 51);
  expect(() => read(file)).toThrow(refusal('block name', second.headerOffset));
});

/** The parts of the sample in which a flip yields another valid image, for nothing in the file tells. */
function freeRanges(made: Sample): [number, number][] {
  const image = read(fileOf(made));
  const [first, second] = made.layout.blocks as [
    (typeof made.layout.blocks)[0],
    (typeof made.layout.blocks)[0],
  ];
  const devices = image.end - 5 - (image.vmdesc?.length ?? 0) - image.deviceState.length;
  return [
    [13, 24],
    [0x61, 0x67],
    [second.headerOffset + 1, second.headerOffset + 21],
    [headerAt(made, 0) + 3, headerAt(made, 0) + 4],
    [headerAt(made, 1) + 3, headerAt(made, 1) + 4],
    [first.bitmapOffset, first.bitmapOffset + (made.bitmaps[0]?.length ?? 0)],
    [second.bitmapOffset, second.bitmapOffset + (made.bitmaps[1]?.length ?? 0)],
    // PART and END of the ram section say the same to a reader.
    [made.layout.tailOffset + 13, made.layout.tailOffset + 14],
    [made.layout.tailOffset + 36, made.layout.tailOffset + 37],
    [devices, image.end],
  ];
}

test('every flip of a bit in a header is refused with field and offset, or leaves a valid image where nothing can tell', () => {
  const made = sample();
  const file = fileOf(made);
  const free = freeRanges(made);
  const accepted = new Set<number>();
  for (const { offset, bytes } of made.parts) {
    for (let at = offset; at < offset + bytes.length; at += 1) {
      for (let bit = 0; bit < 8; bit += 1) {
        const original = file[at] as number;
        file[at] = original ^ (1 << bit);
        try {
          read(file);
          accepted.add(at);
        } catch (error) {
          expect(error).toMatchObject({
            code: 'E_IMAGE_INVALID',
            field: expect.any(String),
            offset: expect.any(Number),
          });
        }
        file[at] = original;
      }
    }
  }
  const unexpected = [...accepted].filter((at) => !free.some(([start, end]) => at >= start && at < end));
  expect(unexpected.map((at) => at.toString(16))).toEqual([]);
});

test('arbitrary damage never escapes as another error', () => {
  const file = fileOf(sample());
  fc.assert(
    fc.property(fc.nat(0xa0), fc.uint8Array({ minLength: 1, maxLength: 12 }), (at, bytes) => {
      const damaged = file.slice();
      damaged.set(bytes, at);
      try {
        read(damaged);
      } catch (error) {
        expect(error).toMatchObject({ code: 'E_IMAGE_INVALID' });
      }
    }),
    { numRuns: 300 },
  );
});
