import { highestSetPage } from './bitmap.ts';
import { ByteWriter } from './byte-writer.ts';
import { isWholeDeviceState } from './device-state.ts';
import {
  BLOCK_HEADER_VERSION,
  bitmapBytes,
  CAPABILITY_MAPPED_RAM,
  COMMAND_SWITCHOVER_START,
  PAGE_BYTES,
  RAM_SECTION_ID,
  SECTION,
} from './format.ts';
import { checkGuest, type Layout, type LayoutOptions, unusable } from './layout.ts';
import { endRamSection, endStream, streamHead } from './stream.ts';
import type { BlockLayout } from './types.ts';
import { minimalVmdesc } from './vmdesc.ts';

/** Bytes that go to one place of the file. */
export interface ImagePart {
  /** Offset from the file's start. */
  offset: number;
  /** What stands there. */
  bytes: Uint8Array;
}

/** All of an image but its pages. */
export interface EncodedImage {
  /** The parts in ascending order; what lies between them is pages or holes. */
  parts: ImagePart[];
  /** Length of the file. */
  length: number;
}

/** What {@link encodeImage} writes around the pages. */
export interface EncodeOptions {
  /** Where everything goes. */
  layout: Layout;
  /** The page bitmap of each block. */
  bitmaps: readonly Uint8Array[];
  /** The device sections, ending in the EOF byte. */
  deviceState: Uint8Array;
  /** The JSON text describing them; the least possible one if not given. */
  vmdesc?: Uint8Array | undefined;
}

/** What a stream without pages is made of. */
export type RamlessOptions = Pick<LayoutOptions, 'machine' | 'blocks'> & Pick<EncodeOptions, 'deviceState'>;

/**
 * The headers, bitmaps and tail of an image, byte for byte as QEMU writes them for a stopped guest, except for the ram section's id.
 *
 * @throws MapramError E_USAGE if the bitmaps do not fit the blocks, or the device state does not end in EOF.
 */
export function encodeImage(options: EncodeOptions): EncodedImage {
  const { layout, bitmaps, deviceState } = options;
  checkDeviceState(deviceState);
  if (bitmaps.length !== layout.blocks.length) {
    const message = `${layout.blocks.length} RAM blocks need as many bitmaps, not ${bitmaps.length}`;
    throw unusable(message, 'bitmaps');
  }
  const parts: ImagePart[] = [{ offset: layout.base, bytes: layout.head }];
  layout.blocks.forEach((block, index) => {
    const bitmap = bitmaps[index] as Uint8Array;
    checkBitmap(block, bitmap);
    parts.push(
      { offset: block.headerOffset, bytes: blockRecord(block) },
      { offset: block.bitmapOffset, bytes: bitmap },
    );
  });
  const vmdesc = options.vmdesc ?? minimalVmdesc(layout.machine, [CAPABILITY_MAPPED_RAM]);
  const tail = imageTail(layout.machine, deviceState, vmdesc);
  parts.push({ offset: layout.tailOffset, bytes: tail });
  return { parts, length: layout.tailOffset + tail.length };
}

/**
 * A classic (not mapped-ram) stream that holds no page at all, for a QEMU whose RAM has been filled from outside: its loader
 * leaves alone what it is not sent. There is no capabilities subsection, so the loading QEMU must have mapped-ram off.
 *
 * Blocks that QEMU may resize take the used lengths given here. The ram section is left at its START: QEMU 10.0.2 needs no more.
 *
 * @throws MapramError E_USAGE if the machine or a block cannot be written, or the device state does not end in EOF.
 */
export function encodeRamlessStream(options: RamlessOptions): Uint8Array {
  const { machine, blocks, deviceState } = options;
  checkGuest(machine, blocks);
  checkDeviceState(deviceState);
  const stream = streamHead(machine, [], blocks);
  for (const { name, usedLength } of blocks) stream.shortText(name).be64(usedLength);
  endRamSection(stream);
  return endStream(stream, deviceState, minimalVmdesc(machine, [])).toBytes();
}

function blockRecord({ name, usedLength, bitmapOffset, pagesOffset }: BlockLayout): Uint8Array {
  return new ByteWriter()
    .shortText(name)
    .be64(usedLength)
    .be32(BLOCK_HEADER_VERSION)
    .be64(PAGE_BYTES)
    .be64(bitmapOffset)
    .be64(pagesOffset)
    .toBytes();
}

/** Everything behind the last page: a stopped guest makes QEMU write one PART, in which nothing is left to send, and an END. */
function imageTail(machine: string, deviceState: Uint8Array, vmdesc: Uint8Array): Uint8Array {
  const tail = endRamSection(new ByteWriter());
  endRamSection(tail.u8(SECTION.PART).be32(RAM_SECTION_ID));
  if (announcesSwitchover(machine)) tail.u8(SECTION.COMMAND).be16(COMMAND_SWITCHOVER_START).be16(0);
  endRamSection(tail.u8(SECTION.END).be32(RAM_SECTION_ID));
  return endStream(tail, deviceState, vmdesc).toBytes();
}

/**
 * Whether the machine type is of QEMU 10.0 or newer: those announce the switchover (`send-switchover-start` is off in
 * `hw_compat_9_2`). A name without a version may load in an older QEMU, which refuses the command, while none requires it.
 */
function announcesSwitchover(machine: string): boolean {
  const major = /-(\d+)\.\d+$/.exec(machine)?.[1];
  return major !== undefined && Number(major) >= 10;
}

function checkBitmap({ name, usedLength }: BlockLayout, bitmap: Uint8Array): void {
  const expected = bitmapBytes(usedLength);
  if (bitmap.length === expected && highestSetPage(bitmap) < usedLength / PAGE_BYTES) return;
  const fault = `has ${bitmap.length} bytes instead of ${expected}, or names pages beyond the block`;
  throw unusable(`The bitmap of RAM block ${name} ${fault}`, 'bitmap');
}

function checkDeviceState(deviceState: Uint8Array): void {
  if (isWholeDeviceState(deviceState)) return;
  const message = 'The device state must begin with a full section and end in a section footer and EOF';
  throw unusable(message, 'deviceState');
}
