import { MapramError } from '../errors.ts';
import { checkAreas } from './areas.ts';
import { Cursor, type Reading } from './cursor.ts';
import { findRunState } from './device-state.ts';
import { invalid } from './invalid.ts';
import { readHead } from './read-head.ts';
import { type RamSection, readRam } from './read-ram.ts';
import { readDeviceState, readRamSections, type Tail } from './read-tail.ts';
import type { Image } from './types.ts';

/**
 * Reads and checks a mapped-ram image, except for the pages themselves.
 *
 * Headers lie gigabytes apart, so this asks for the bytes it wants: hand each request's bytes, exactly as many as it says, to `next`.
 * All of the format is accepted that QEMU's loader takes: any base offset, packing and order of blocks, bitmaps elsewhere, header
 * versions 0 and 1, missing PART, COMMAND, END and description, and anything behind the stream.
 *
 * @param fileLength bytes in the file.
 * @param base where the stream begins in the file.
 * @param isDevice whether the file is a block device, whose end says nothing about the image's.
 * @throws MapramError E_IMAGE_INVALID with the offset and the name of the field that is wrong.
 */
export function* readImage(fileLength: number, base = 0, isDevice = false): Reading<Image> {
  if (!Number.isSafeInteger(base) || base < 0 || base >= fileLength) {
    throw invalid(`There is no image at ${base}: the file has ${fileLength} bytes`, base, 'base');
  }
  const cursor = new Cursor(fileLength, base);
  const configuration = yield* readHead(cursor);
  const ram = yield* readRam(cursor, configuration);
  const { deviceState, vmdesc } = yield* readRest(cursor, ram, isDevice);
  const end = cursor.position;
  checkAreas(base, ram.blocks, { start: ram.tailOffset, end });
  return {
    base,
    ...configuration,
    ramSectionId: ram.id,
    totalLength: ram.totalLength,
    blocks: ram.blocks.map(({ headerEnd: _, ...block }) => block),
    deviceState,
    vmdesc,
    runState: findRunState(deviceState)?.state,
    end,
    trailingBytes: fileLength - end,
  };
}

/** QEMU writes bitmaps last, so that a stream without an end and with no page marked is what an interrupted save leaves. */
function* readRest(cursor: Cursor, ram: RamSection, isDevice: boolean): Reading<Tail> {
  try {
    yield* readRamSections(cursor, ram.id);
    return yield* readDeviceState(cursor, isDevice);
  } catch (error) {
    const nothingSaved = ram.blocks.every(({ setPages }) => setPages === 0);
    if (!(error instanceof MapramError && nothingSaved)) throw error;
    const { code, offset, field } = error;
    const message = `${error.message}; no page is marked as saved: was the save interrupted?`;
    throw new MapramError(code, message, { offset, field });
  }
}
