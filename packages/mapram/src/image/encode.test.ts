import { expect, test } from 'vitest';
import { encodeImage, encodeRamlessStream } from './encode.ts';
import { layoutImage } from './layout.ts';
import { bitmapOf, deviceState, fileOf, sample } from './read.fixture.ts';

const blocks = [
  { name: 'pc.ram', usedLength: 0x1000000 },
  { name: '/rom@etc/acpi/tables', usedLength: 0x20000 },
  { name: 'pc.bios', usedLength: 0x40000 },
  { name: 'pc.rom', usedLength: 0x20000 },
  { name: '/rom@etc/table-loader', usedLength: 0x1000 },
  { name: '/rom@etc/acpi/rsdp', usedLength: 0x1000 },
];

function hex(bytes: Uint8Array | undefined): string {
  return Buffer.from(bytes ?? []).toString('hex');
}

// Offsets of a file that QEMU 10.0.2 wrote for `-machine q35 -nodefaults -vga none -m 16 -S`.
test('the layout is QEMU 10.0.2’s own', () => {
  const layout = layoutImage({ machine: 'pc-q35-10.0', blocks });
  expect(
    layout.blocks.map(({ headerOffset, bitmapOffset, pagesOffset }) => [
      headerOffset,
      bitmapOffset,
      pagesOffset,
    ]),
  ).toEqual([
    [0x60, 0x8b, 0x100000],
    [0x1100000, 0x1100039, 0x1200000],
    [0x1220000, 0x122002c, 0x1300000],
    [0x1340000, 0x134002b, 0x1400000],
    [0x1420000, 0x142003a, 0x1500000],
    [0x1501000, 0x1501037, 0x1600000],
  ]);
  expect(layout.tailOffset).toBe(0x1601000);
});

test('a base offset moves headers, while pages stay on the grid of the file', () => {
  const layout = layoutImage({ machine: 'pc-q35-10.0', blocks, base: 12345 });
  expect(layout.blocks[0]).toMatchObject({
    headerOffset: 12345 + 0x60,
    bitmapOffset: 12345 + 0x8b,
    pagesOffset: 0x100000,
  });
});

test('headers are byte for byte as QEMU 10.0.2 writes them, but for the section id', () => {
  const layout = layoutImage({ machine: 'pc-q35-10.0', blocks });
  const bitmaps = blocks.map(({ usedLength }) => bitmapOf(usedLength, []));
  const { parts } = encodeImage({ layout, bitmaps, deviceState: deviceState() });
  expect(hex(parts[0]?.bytes)).toBe(
    '5145564d00000003070000000b70632d7133352d31302e30051a636f6e66696775726174696f6e2f6361706162696c6974696573' +
      '00000001000000010a6d61707065642d72616d01000070010372616d00000000000000040000000001082004',
  );
  expect(hex(parts[1]?.bytes)).toBe(
    '0670632e72616d0000000001000000000000010000000000001000000000000000008b0000000000100000',
  );
  const tail = hex(parts.at(-1)?.bytes);
  const end = '00000000000000107e00007001';
  expect(tail.startsWith(`${end}0200007001${end}08000b00000300007001${end}0400000000`)).toBe(true);
});

test.each([
  ['pc-q35-10.0', true],
  ['pc-i440fx-11.2', true],
  ['pc-q35-9.2', false],
  ['pc-q35-rhel9.4.0', false],
  ['microvm', false],
])('machine %s announces the switchover: %s', (machine, expected) => {
  const { parts } = sample({ machine });
  expect(hex(parts.at(-1)?.bytes).includes('08000b00000300007001')).toBe(expected);
});

test('parts ascend, do not overlap, and end where the file does', () => {
  const { parts, length } = sample({ base: 77 });
  let end = 77;
  for (const { offset, bytes } of parts) {
    expect(offset).toBeGreaterThanOrEqual(end);
    end = offset + bytes.length;
  }
  expect(end).toBe(length);
});

test('without a description the least one is written, and a given one verbatim', () => {
  const end = (file: Uint8Array): string => Buffer.from(file).toString('latin1');
  expect(end(fileOf(sample()))).toMatch(
    /"capabilities","type":"capability","size":11\}\]\}\]\},"page_size":4096,"devices":\[\]\}$/,
  );
  const vmdesc = Buffer.from('{"devices": [1]}');
  expect(end(fileOf(sample({ vmdesc })))).toSatisfy((text: string) =>
    text.endsWith('\0\x06\0\0\0\x10{"devices": [1]}'),
  );
});

test('the stream without pages lists blocks, then devices', () => {
  const stream = encodeRamlessStream({
    machine: 'pc-q35-10.0',
    blocks: blocks.slice(0, 1),
    deviceState: deviceState(),
  });
  const head =
    '5145564d00000003070000000b70632d7133352d31302e3001000070010372616d00000000000000040000000001000004' +
    '0670632e72616d000000000100000000000000000000107e00007001';
  expect(hex(stream).startsWith(`${head}${hex(deviceState())}06`)).toBe(true);
  const json = Buffer.from(stream).toString('latin1');
  expect(JSON.parse(json.slice(json.indexOf('{')))).toEqual({
    configuration: {
      vmsd_name: 'configuration',
      version: 1,
      fields: [
        { name: 'len', type: 'uint32', size: 4 },
        { name: 'name', type: 'buffer', size: 11 },
      ],
    },
    page_size: 4096,
    devices: [],
  });
});

test.each([
  ['no block', { blocks: [] }],
  ['a part of a page', { blocks: [{ name: 'a', usedLength: 4095 }] }],
  ['an empty block', { blocks: [{ name: 'a', usedLength: 0 }] }],
  ['no number', { blocks: [{ name: 'a', usedLength: Number.NaN }] }],
  ['too much RAM', { blocks: [{ name: 'a', usedLength: 2 ** 46 }] }],
  ['no name', { blocks: [{ name: '', usedLength: 4096 }] }],
  ['a long name', { blocks: [{ name: 'a'.repeat(256), usedLength: 4096 }] }],
  ['a name twice', { blocks: [blocks[0], blocks[0]] }],
  ['no machine', { machine: '' }],
  ['an unprintable machine', { machine: 'pc\n' }],
  ['a negative base', { base: -1 }],
])('a layout that the format cannot hold is refused: %s', (_, change) => {
  const options = { machine: 'pc-q35-10.0', blocks, ...change } as Parameters<typeof layoutImage>[0];
  expect(() => layoutImage(options)).toThrow(expect.objectContaining({ code: 'E_USAGE' }));
});

test.each([
  [['a', 'a'], /RAM block a is there twice/],
  [['a'.repeat(256)], /a name of 256 bytes/],
  [['é'.repeat(128)], /a name of 256 bytes/],
  [[''], /a name of 0 bytes/],
  [['a\n'], /"a\\n" holds characters that cannot be printed/],
])('a block name is refused for what is wrong with it: %j', (names, message) => {
  const named = names.map((name) => ({ name, usedLength: 4096 }));
  expect(() => layoutImage({ machine: 'pc', blocks: named })).toThrow(message);
});

test('bitmaps and a device state that do not fit are refused', () => {
  const { layout, bitmaps } = sample();
  const usage = expect.objectContaining({ code: 'E_USAGE' });
  const state = deviceState();
  expect(() => encodeImage({ layout, bitmaps: bitmaps.slice(1), deviceState: state })).toThrow(usage);
  expect(() => encodeImage({ layout, bitmaps: bitmaps.toReversed(), deviceState: state })).toThrow(usage);
  const tail = [bitmaps[0] as Uint8Array, bitmapOf(0x20000, [32])];
  expect(() => encodeImage({ layout, bitmaps: tail, deviceState: state })).toThrow(usage);
  expect(() => encodeImage({ layout, bitmaps, deviceState: state.subarray(0, -1) })).toThrow(usage);
});
