import { ByteWriter } from './byte-writer.ts';
import { type EncodedImage, encodeImage, type ImagePart } from './encode.ts';
import { bitmapBytes, SECTION } from './format.ts';
import { type BlockSize, type Layout, layoutImage } from './layout.ts';
import { readImage } from './read.ts';
import { encodeText } from './text.ts';
import type { Image } from './types.ts';

/** A device section with its footer. */
export function deviceSection(id: number, name: string, payload: Uint8Array): Uint8Array {
  const writer = new ByteWriter().u8(SECTION.FULL).be32(id).shortText(name).be32(0).be32(1);
  return writer.bytes(payload).u8(SECTION.FOOTER).be32(id).toBytes();
}

/** Section `globalstate` as QEMU 10.0.2 writes it. */
export function globalState(state: string, suspended = 0): Uint8Array {
  const name = new Uint8Array(32);
  name.set(encodeText(state));
  const payload = new ByteWriter().be32(state.length + 1).bytes(name);
  return deviceSection(38, 'globalstate', payload.u8(1).u8(suspended).bytes(new Uint8Array(66)).toBytes());
}

/** A small device state: a timer, the run state, EOF. */
export function deviceState(state = 'paused'): Uint8Array {
  const timer = deviceSection(
    0,
    'timer',
    Uint8Array.from({ length: 24 }, (_, index) => index),
  );
  return new ByteWriter().bytes(timer).bytes(globalState(state)).u8(SECTION.EOF).toBytes();
}

/** A bitmap in which the given pages are set. */
export function bitmapOf(usedLength: number, pages: readonly number[]): Uint8Array {
  const bitmap = new Uint8Array(bitmapBytes(usedLength));
  for (const page of pages) bitmap[page >> 3] = (bitmap[page >> 3] as number) | (1 << (page & 7));
  return bitmap;
}

/** An encoded image and where its parts lie. */
export interface Sample extends EncodedImage {
  layout: Layout;
  bitmaps: Uint8Array[];
}

/** A small image of two blocks. */
export function sample(options: { base?: number; vmdesc?: Uint8Array; machine?: string } = {}): Sample {
  const blocks: BlockSize[] = [
    { name: 'pc.ram', usedLength: 0x120000 },
    { name: '/rom@etc/acpi/tables', usedLength: 0x20000 },
  ];
  const { machine = 'pc-q35-10.0', base = 0, vmdesc } = options;
  const layout = layoutImage({ machine, blocks, base });
  const bitmaps = [bitmapOf(0x120000, [0, 1, 5, 64, 287]), bitmapOf(0x20000, [0, 31])];
  return { layout, bitmaps, ...encodeImage({ layout, bitmaps, deviceState: deviceState(), vmdesc }) };
}

/** The file that `parts` make; pages are left zero. */
export function fileOf({ parts, length }: { parts: readonly ImagePart[]; length: number }): Uint8Array {
  const file = new Uint8Array(length);
  for (const { offset, bytes } of parts) file.set(bytes, offset);
  return file;
}

/** Reads an image from memory, and checks that no request leaves the file. */
export function read(file: Uint8Array, base = 0): Image {
  const reader = readImage(file.length, base);
  let step = reader.next();
  while (!step.done) {
    const { offset, length } = step.value;
    if (offset < 0 || length <= 0 || offset + length > file.length) {
      throw new RangeError(`request of ${length} bytes at ${offset} leaves the file of ${file.length}`);
    }
    step = reader.next(file.slice(offset, offset + length));
  }
  return step.value;
}
