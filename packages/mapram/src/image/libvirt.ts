import type { Cursor, Reading } from './cursor.ts';

// Save images of libvirt's QEMU driver: a header, the domain's XML, and behind it QEMU's stream. Facts of libvirt 11.3,
// src/qemu/qemu_saveimage.h; format 6, "sparse", is mapped-ram and came with 11.2.

const MAGIC_BYTES = 16;
const COMPLETE = 'LibvirtQemudSave';
const BEING_WRITTEN = 'LibvirtQemudPart';
/** Version, length of the XML, whether the guest ran, format, offset of the cookie, and 14 unused words. */
const HEADER_BYTES: number = MAGIC_BYTES + 19 * 4;
/** The highest version; the header's numbers are in the saving host's byte order, which this tells. */
const VERSION = 2;
const FORMATS = ['raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse'];
const RAW = 0;
const SPARSE = 6;

/**
 * Refuses a libvirt save image at the cursor by name, saying where QEMU's stream begins in it; otherwise leaves the cursor where
 * it is.
 *
 * @throws {MapramError} E_IMAGE_INVALID
 */
export function* refuseLibvirt(cursor: Cursor): Reading<void> {
  const start = cursor.position;
  if (cursor.fileLength - start < HEADER_BYTES) return;
  const header = yield* cursor.take(HEADER_BYTES, 'magic');
  cursor.position = start;
  const magic = header.toString('latin1', 0, MAGIC_BYTES);
  if (magic === BEING_WRITTEN) throw cursor.wrong('This is a libvirt save image that was not finished');
  if (magic !== COMPLETE) return;
  const view = new DataView(header.buffer, header.byteOffset + MAGIC_BYTES);
  const isLittle = view.getUint32(0, true) <= VERSION;
  const stream = start + HEADER_BYTES + view.getUint32(4, isLittle);
  const format = view.getUint32(12, isLittle);
  const name = FORMATS[format] ?? `number ${format}`;
  const what = `This is a libvirt save image (format ${name}): its QEMU stream begins at offset ${stream}`;
  if (format === SPARSE) throw cursor.wrong(`${what}; name that as the image's offset`);
  const why = format === RAW ? 'is no mapped-ram image' : 'is compressed';
  throw cursor.wrong(`${what}, and ${why}; have libvirt save with the format sparse (libvirt 11.2)`);
}
