import { fstat } from 'node:fs';
import { promisify } from 'node:util';
import { asMapramError, MapramError } from './errors.ts';
import { pathFault } from './file-name.ts';
import { type Image, PAGE_BYTES } from './image/index.ts';
import { openImage } from './image-file.ts';

/** Options of {@link inspect}. */
export interface InspectOptions {
  /** Byte offset of the image in the file; default 0. */
  offset?: number | undefined;
}

/** One RAM block of an inspected image. */
export interface InspectedBlock {
  /** QEMU's name of the block. */
  name: string;
  /** Used length in bytes. */
  length: number;
  /** Absolute file offset of the block's page bitmap. */
  bitmapOffset: number;
  /** Absolute file offset of the block's page 0. */
  pagesOffset: number;
  /** Number of guest pages in the block. */
  pages: number;
  /** Number of them that the image stores; all others read zero. */
  dataPages: number;
}

/** What an image holds. */
export interface InspectReport {
  /** The path as the caller gave it. */
  image: string;
  /** Byte offset of the image in the file. */
  offset: number;
  /** Machine type that the restoring QEMU must have, for example `pc-q35-10.0`. */
  machine: string;
  /** Migration capabilities that the restoring QEMU must have switched on, no more and no fewer. */
  capabilities: string[];
  /** The guest's UUID, where the image records one. */
  uuid?: string | undefined;
  /** State that the guest had when it was saved, for example `running`; absent where the device state has none. */
  runState?: string | undefined;
  /** Bytes of a guest page. */
  pageBytes: number;
  /** Bytes of guest RAM in all blocks. */
  guestBytes: number;
  /** Bytes of guest RAM that the image stores. */
  dataBytes: number;
  /** Number of guest pages in all blocks. */
  pages: number;
  /** Number of guest pages that the image does not store because they read zero. */
  zeroPages: number;
  /** Bytes of the device sections with the end mark behind them. */
  deviceStateBytes: number;
  /** Whether the JSON description of the device sections is there. */
  hasVmDescription: boolean;
  /** Bytes from the image's first to its last. */
  imageBytes: number;
  /** Bytes of the file behind the image; QEMU ignores them. */
  trailingBytes: number;
  /** Length of the whole file or device in bytes. */
  fileBytes: number;
  /** Bytes that the file occupies on its disk: holes do not count, except on a block device. */
  allocatedBytes: number;
  /** The RAM blocks in the image's order. */
  blocks: InspectedBlock[];
}

/**
 * Reads the structure of the image at `path`, checks every length, offset and count in it, and says what it holds.
 * No guest page is read.
 *
 * @throws {MapramError} E_USAGE, or as {@link openImage} does.
 */
export async function inspect(path: string, options: InspectOptions = {}): Promise<InspectReport> {
  checkOptions(path, options);
  const opened = await openImage(path, options.offset);
  try {
    const stat = await promisify(fstat)(opened.fd);
    return {
      ...describeImage(opened.image),
      image: path,
      fileBytes: opened.length,
      allocatedBytes: stat.isBlockDevice() ? opened.length : stat.blocks * 512,
    };
  } catch (error) {
    throw asMapramError(error);
  } finally {
    opened.close();
  }
}

/** Programs without types may give anything. */
function checkOptions(path: unknown, options: unknown): void {
  const fault = typeof path === 'string' ? pathFault(path) : 'it is no text';
  if (fault !== undefined) {
    throw new MapramError('E_USAGE', `The path of the image is not right: ${fault}`, { field: 'image' });
  }
  if (typeof options !== 'object' || options === null) {
    throw new MapramError('E_USAGE', 'The options of inspect are no object');
  }
  const { offset, ...others } = options as Record<string, unknown>;
  const [unknown] = Object.keys(others);
  if (unknown !== undefined) {
    throw new MapramError('E_USAGE', `Option ${unknown} is not right: there is no such option`, {
      field: unknown,
    });
  }
  if (offset === undefined || (Number.isSafeInteger(offset) && Number(offset) >= 0)) return;
  throw new MapramError('E_USAGE', 'Option offset is not right: it is no whole number of bytes', {
    field: 'offset',
  });
}

function describeImage(image: Image): Omit<InspectReport, 'image' | 'fileBytes' | 'allocatedBytes'> {
  const blocks = image.blocks.map((block) => ({
    name: block.name,
    length: block.usedLength,
    bitmapOffset: block.bitmapOffset,
    pagesOffset: block.pagesOffset,
    pages: block.usedLength / PAGE_BYTES,
    dataPages: block.setPages,
  }));
  const pages = image.totalLength / PAGE_BYTES;
  const dataPages = blocks.reduce((sum, block) => sum + block.dataPages, 0);
  return {
    offset: image.base,
    machine: image.machine,
    capabilities: image.capabilities,
    uuid: image.uuid,
    runState: image.runState,
    pageBytes: PAGE_BYTES,
    guestBytes: image.totalLength,
    dataBytes: dataPages * PAGE_BYTES,
    pages,
    zeroPages: pages - dataPages,
    deviceStateBytes: image.deviceState.length,
    hasVmDescription: image.vmdesc !== undefined,
    imageBytes: image.end - image.base,
    trailingBytes: image.trailingBytes,
    blocks,
  };
}
