import { constants, fstat, open, read } from 'node:fs';
import { promisify } from 'node:util';
import { decodeRecord, isOf, RECORD_BYTES } from './device-record.ts';
import { asMapramError, type ErrorCode, MapramError } from './errors.ts';
import { type Image, readImage } from './image/index.ts';
import { closeFd, lengthInBytes } from './native.ts';

const openFile = promisify(open);
const statFile = promisify(fstat);
const readFd = promisify(read);

/** An image whose structure was read and checked, with the file still open for the reading of its pages. */
export interface OpenImage {
  /** Descriptor opened read-only through the page cache; closed by {@link OpenImage.close}. */
  fd: number;
  /** The path as the caller gave it. */
  path: string;
  /** Length of the whole file or device in bytes, whatever stands before and behind the image included. */
  length: number;
  /** The image's checked structure. */
  image: Image;
  /** Closes the descriptor. Calling it again does nothing. */
  close(): void;
}

/**
 * Opens the image at byte `offset` of the file at `path` and checks its structure. Only headers, bitmaps and
 * device state are read; guest pages are left to the engine.
 *
 * @throws {MapramError} E_NOT_FOUND, E_PERMISSION, E_HOST_UNSUPPORTED, E_IO, or E_IMAGE_INVALID naming the field and its offset.
 */
export async function openImage(path: string, offset = 0): Promise<OpenImage> {
  // Without O_NONBLOCK, opening a fifo would wait for a writer; a regular file ignores the flag.
  const opening = openFile(path, constants.O_RDONLY | constants.O_NONBLOCK);
  const fd = await opening.catch((cause: NodeJS.ErrnoException) => {
    const code = cause.code === 'ENXIO' ? 'E_IMAGE_INVALID' : asMapramError(cause).code;
    throw new MapramError(code, `${path} ${REASONS[code] ?? 'cannot be opened'}`, { path, cause });
  });
  let isOpen = true;
  try {
    const { length, isDevice } = await examine(fd, path);
    const image = await (isDevice
      ? readFromDevice(fd, length, offset)
      : drive(fd, readImage(length, offset)));
    return {
      fd,
      path,
      length,
      image,
      close: () => {
        if (isOpen) closeFd(fd);
        isOpen = false;
      },
    };
  } catch (error) {
    closeFd(fd);
    const named = asMapramError(error);
    // The reader, being pure, does not know the file.
    throw named.path === undefined ? named.at(path) : named;
  }
}

/** Length of what was opened, if an image can be in it. */
async function examine(fd: number, path: string): Promise<{ length: number; isDevice: boolean }> {
  const stat = await statFile(fd);
  if (stat.isFile()) return { length: stat.size, isDevice: false };
  if (stat.isBlockDevice()) return { length: await lengthInBytes(fd), isDevice: true };
  const kind = stat.isDirectory() ? 'a directory' : stat.isFIFO() ? 'a pipe' : 'no block device';
  throw new MapramError('E_IMAGE_INVALID', `${path} is ${kind}; an image is a file or on a block device`);
}

/** Reads an image on a device: to the end that its record tells, if it has one, else to the end that can be found. */
async function readFromDevice(fd: number, length: number, offset: number): Promise<Image> {
  const end = offset === 0 ? await recordedEnd(fd, length) : undefined;
  if (end === undefined) return drive(fd, readImage(length, offset, true));
  const image = await drive(fd, readImage(end, offset));
  return { ...image, trailingBytes: length - image.end };
}

/** Where the image on a device ends, if there is a record of the one that is there. */
async function recordedEnd(fd: number, length: number): Promise<number | undefined> {
  if (length < RECORD_BYTES) return undefined;
  const last = await readExactly(fd, length - RECORD_BYTES, RECORD_BYTES);
  const record = decodeRecord(last, length);
  if (record === undefined) return undefined;
  const head = await readExactly(fd, 0, RECORD_BYTES);
  const tail = await readExactly(fd, record.end - record.tailBytes, record.tailBytes);
  return isOf(record, head, tail) ? record.end : undefined;
}

/** Hands the pure reader the bytes that it asks for until it returns the image. */
async function drive(fd: number, reader: ReturnType<typeof readImage>): Promise<Image> {
  let step = reader.next();
  while (!step.done) {
    step = reader.next(await readExactly(fd, step.value.offset, step.value.length));
  }
  return step.value;
}

async function readExactly(fd: number, offset: number, length: number): Promise<Uint8Array> {
  const buffer = new Uint8Array(length);
  let filled = 0;
  while (filled < length) {
    const at = { offset: offset + filled };
    const reading = readFd(fd, buffer, filled, length - filled, at.offset);
    const { bytesRead } = await reading.catch((cause: unknown) => {
      throw new MapramError('E_IO', 'the image cannot be read', { ...at, cause });
    });
    if (bytesRead === 0)
      throw new MapramError('E_IMAGE_INVALID', 'the file became shorter while it was read', at);
    filled += bytesRead;
  }
  return buffer;
}

/** Why an image cannot be opened. */
const REASONS: { [code in ErrorCode]?: string } = {
  E_NOT_FOUND: 'does not exist',
  E_PERMISSION: 'may not be read by this user',
  E_IMAGE_INVALID: 'is a socket; an image is a file or on a block device',
};
