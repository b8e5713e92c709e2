import { MapramError } from '../errors.ts';
import { checkExtents } from './extents.ts';

/** Most channels of a transfer. */
export const MAX_CHANNELS = 128;
/** Smallest chunk; smaller requests cost more than they move (bench/ measures it). */
const MIN_CHUNK_BYTES: number = 1024 * 1024;

/** What is to be transferred. */
export interface PlanOptions {
  /** Bytes in each RAM block, in the order of the image. */
  blocks: readonly { length: number }[];
  /** The data of each block: extents of three numbers, offset in the block, length, and source; ascending and disjoint. */
  extents: readonly Float64Array[];
  /** Number of channels, 1 to 128. */
  channels: number;
  /** Bytes in a grid cell, which the engine moves as one request: a power of two, at least 1 MiB. */
  chunkBytes: number;
}

/** Which channel moves what. */
export interface TransferPlan {
  /** The ranges of each channel: four numbers each, index of the block, offset in it, length, and source. */
  channels: Float64Array[];
  /** Bytes of data in all extents. */
  dataBytes: number;
}

/** The ranges of one channel while they are put together. */
type Channel = number[];

/**
 * Divides data among channels: each gets a contiguous part of the image, balanced by bytes of data, and no grid cell is divided.
 *
 * The data is lined up in image order, and each cell goes to the channel in whose equal share of that line the cell's middle lies. So
 * a channel's bytes differ from the equal share by less than a cell. Channels beyond the number of cells stay empty.
 *
 * @throws MapramError E_USAGE for a number of channels, a chunk size or extents that are not as described.
 */
export function planTransfer(options: PlanOptions): TransferPlan {
  const { blocks, extents, channels: count, chunkBytes } = options;
  checkSizes(count, chunkBytes);
  const dataBytes = checkExtents(blocks, extents);
  const channels = Array.from({ length: count }, (): Channel => []);
  let before = 0;
  extents.forEach((blockExtents, block) => {
    before = divideBlock(block, blockExtents, chunkBytes, before, (middle) => {
      // Floating point may round the quotient of a cell in the very last share up to `count`.
      const index = Math.min(Math.floor((middle * count) / dataBytes), count - 1);
      return channels[index] as Channel;
    });
  });
  return { channels: channels.map((ranges) => Float64Array.from(ranges)), dataBytes };
}

/**
 * Hands the cells of one block to channels.
 *
 * @param before bytes of data in front of this block.
 * @param channelAt which channel owns a position in the line of all data.
 * @returns bytes of data up to the end of this block.
 */
function divideBlock(
  block: number,
  extents: Float64Array,
  chunkBytes: number,
  before: number,
  channelAt: (middle: number) => Channel,
): number {
  let done = before;
  let pieces: Piece[] = [];
  let cellEnd = 0;
  let cellBytes = 0;
  const closeCell = (): void => {
    if (pieces.length === 0) return;
    const channel = channelAt(done + cellBytes / 2);
    for (const piece of pieces) append(channel, block, piece);
    done += cellBytes;
    pieces = [];
    cellBytes = 0;
  };
  for (const piece of cutAtGrid(extents, chunkBytes)) {
    if (piece.offset >= cellEnd) {
      closeCell();
      cellEnd = (Math.floor(piece.offset / chunkBytes) + 1) * chunkBytes;
    }
    pieces.push(piece);
    cellBytes += piece.length;
  }
  closeCell();
  return done;
}

/** A part of an extent within one grid cell. */
interface Piece {
  offset: number;
  length: number;
  source: number;
}

function* cutAtGrid(extents: Float64Array, chunkBytes: number): Generator<Piece, void, undefined> {
  for (let index = 0; index < extents.length; index += 3) {
    const start = extents[index] as number;
    const end = start + (extents[index + 1] as number);
    const source = extents[index + 2] as number;
    for (let offset = start; offset < end; ) {
      const cellEnd = (Math.floor(offset / chunkBytes) + 1) * chunkBytes;
      const length = Math.min(end, cellEnd) - offset;
      yield { offset, length, source };
      offset += length;
    }
  }
}

/** Adds a piece to a channel; one that goes on where the last range ends, in the same source, makes that range longer. */
function append(ranges: Channel, block: number, { offset, length, source }: Piece): void {
  const last = ranges.length - 4;
  const lastLength = ranges[last + 2] as number;
  const continues =
    last >= 0 &&
    ranges[last] === block &&
    (ranges[last + 1] as number) + lastLength === offset &&
    ranges[last + 3] === source;
  if (continues) ranges[last + 2] = lastLength + length;
  else ranges.push(block, offset, length, source);
}

function checkSizes(channels: number, chunkBytes: number): void {
  if (!Number.isInteger(channels) || channels < 1 || channels > MAX_CHANNELS) {
    throw new MapramError('E_USAGE', `The number of channels must be 1 to ${MAX_CHANNELS}, not ${channels}`, {
      field: 'channels',
    });
  }
  if (chunkBytes < MIN_CHUNK_BYTES || !Number.isInteger(Math.log2(chunkBytes))) {
    throw new MapramError(
      'E_USAGE',
      `A chunk must be a power of two of at least 1 MiB, not ${chunkBytes} bytes`,
      {
        field: 'chunkBytes',
      },
    );
  }
}
