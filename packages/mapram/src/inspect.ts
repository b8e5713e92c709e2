import { fstat } from 'node:fs';
import { promisify } from 'node:util';
import { asMapramError } from './errors.ts';
import { PAGE_BYTES } from './image/index.ts';
import { openImage } from './image-file.ts';
import { checkInspectOptions, checkPath } from './options.ts';
import { type BlockReport, blockReport, countPages, type PageCounts } from './report.ts';

/** Options of {@link inspect}. */
export interface InspectOptions {
  /** Byte offset of the image in the file; default 0. */
  offset?: number | undefined;
}

/** One RAM block of an inspected image. */
export interface InspectedBlock extends BlockReport {
  /** Absolute file offset of the block's page bitmap. */
  bitmapOffset: number;
  /** Absolute file offset of the block's page 0. */
  pagesOffset: number;
}

/** What an image holds. */
export interface InspectReport extends PageCounts {
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
  checkPath(path, 'The path of the image is', 'image');
  checkInspectOptions(options);
  const opened = await openImage(path, options.offset);
  try {
    const stat = await promisify(fstat)(opened.fd);
    const { image, length } = opened;
    return {
      image: path,
      offset: image.base,
      machine: image.machine,
      capabilities: image.capabilities,
      uuid: image.uuid,
      runState: image.runState,
      pageBytes: PAGE_BYTES,
      ...countPages(image.blocks),
      deviceStateBytes: image.deviceState.length,
      hasVmDescription: image.vmdesc !== undefined,
      imageBytes: image.end - image.base,
      trailingBytes: image.trailingBytes,
      fileBytes: length,
      allocatedBytes: stat.isBlockDevice() ? length : stat.blocks * 512,
      blocks: image.blocks.map((block) => ({
        ...blockReport(block),
        bitmapOffset: block.bitmapOffset,
        pagesOffset: block.pagesOffset,
      })),
    };
  } catch (error) {
    throw asMapramError(error);
  } finally {
    opened.close();
  }
}
