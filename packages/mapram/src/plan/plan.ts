/** Most channels of a transfer. */
export const MAX_CHANNELS = 128;

/** What is to be transferred. */
export interface PlanOptions {
  /** Bytes in each RAM block, in the order of the image. */
  blocks: readonly { usedLength: number }[];
  /** The data of each block: extents of three numbers, offset in the block, length, and source; ascending and disjoint. */
  extents: Float64Array[];
  /** Number of channels, 1 to 128. */
  channels: number;
  /** Bytes in a grid cell, which the engine moves as one request: a power of two, at least 1 MiB. */
  chunkBytes: number;
}

/** Which channel moves what. */
export interface TransferPlan {
  /** The extents of each block, as they were given. */
  extents: Float64Array[];
  /** For each block, where one channel's part of it ends and the next one's begins: one number less than there are channels. */
  splits: Float64Array[];
  /** Bytes of data in all extents. */
  dataBytes: number;
}

/**
 * Divides data among channels: each gets a contiguous part of the image, balanced by bytes of data, and no grid cell is divided.
 *
 * The data is lined up in image order, and each cell goes to the channel in whose equal share of that line the cell's middle lies. So
 * a channel's bytes differ from the equal share by less than a cell. Channels beyond the number of cells stay empty. A guest stands
 * still meanwhile, and may have a million extents, so the plan is only where to split them.
 * The engine, which takes the plan, checks it.
 */
export function planTransfer({ blocks, extents, channels, chunkBytes }: PlanOptions): TransferPlan {
  const dataBytes = bytesIn(extents);
  // The channel that is being filled, and the bytes of data in all cells so far.
  let channel = 0;
  let done = 0;
  const splitBlock = (list: Float64Array, blockLength: number): Float64Array => {
    const splits = new Float64Array(channels - 1).fill(blockLength).fill(0, 0, channel);
    let cell = 0;
    let cellBytes = 0;
    const closeCell = (): void => {
      if (cellBytes === 0) return;
      // Floating point may round the quotient of a cell in the very last share up to `channels`.
      const owner = Math.min(Math.floor(((done + cellBytes / 2) * channels) / dataBytes), channels - 1);
      while (channel < owner) splits[channel++] = cell;
      done += cellBytes;
      cellBytes = 0;
    };
    for (let index = 0; index < list.length; index += 3) {
      let offset = list[index] as number;
      const end = offset + (list[index + 1] as number);
      while (offset < end) {
        if (offset >= cell + chunkBytes) {
          closeCell();
          cell = Math.floor(offset / chunkBytes) * chunkBytes;
        }
        const next = Math.min(end, cell + chunkBytes);
        cellBytes += next - offset;
        offset = next;
      }
    }
    closeCell();
    return splits;
  };
  const splits = blocks.map(({ usedLength }, block) =>
    splitBlock(extents[block] as Float64Array, usedLength),
  );
  return { extents, splits, dataBytes };
}

/** Bytes in all extents, which are what memory was scanned for. */
export function bytesIn(extents: readonly Float64Array[]): number {
  let bytes = 0;
  for (const list of extents)
    for (let index = 1; index < list.length; index += 3) bytes += list[index] as number;
  return bytes;
}
