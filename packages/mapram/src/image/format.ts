/**
 * Facts of QEMU's mapped-ram file format (called fixed-ram before QEMU 9.0).
 *
 * Sources: QEMU 10.0.2, `migration/savevm.c` for the stream, `migration/ram.c` for the ram section, and
 * `docs/devel/migration/mapped-ram.rst`; docs/format.md tells the whole. All integers are big-endian, except the page bitmap.
 */

/** First four bytes of every migration stream: "QEVM" (`QEMU_VM_FILE_MAGIC`). */
export const STREAM_MAGIC = 0x5145564d;
/** The only stream version that QEMU still reads (`QEMU_VM_FILE_VERSION`). */
export const STREAM_VERSION = 3;

/** The byte that opens each section (`QEMU_VM_*` in `migration/savevm.h`). */
export const SECTION = {
  EOF: 0x00,
  START: 0x01,
  PART: 0x02,
  END: 0x03,
  FULL: 0x04,
  SUBSECTION: 0x05,
  VMDESCRIPTION: 0x06,
  CONFIGURATION: 0x07,
  COMMAND: 0x08,
  FOOTER: 0x7e,
} as const;

/** Command "the source is about to switch over"; it has no payload and is written for machine types from 10.0 on. */
export const COMMAND_SWITCHOVER_START = 11;

/** Subsections that the configuration section may hold (`vmstate_configuration`). */
export const SUBSECTION_TARGET_PAGE_BITS = 'configuration/target-page-bits';
/** Lists the capabilities that both sides must have switched on. */
export const SUBSECTION_CAPABILITIES = 'configuration/capabilities';
/** The guest's UUID, present if capability validate-uuid was on. */
export const SUBSECTION_UUID = 'configuration/uuid';
/** The capability that makes a stream a mapped-ram image. */
export const CAPABILITY_MAPPED_RAM = 'mapped-ram';
/** The capability under which shared blocks stay out of the image, and each block's guest address is written. */
export const CAPABILITY_IGNORE_SHARED = 'x-ignore-shared';

/** Name of the section that holds guest RAM; its instance is always 0. */
export const RAM_SECTION_NAME = 'ram';
/** The only version of the ram section that QEMU's loader takes. */
export const RAM_SECTION_VERSION = 4;
/**
 * The section id we give to the ram section. QEMU numbers sections in order of registration, and its loader uses the id only to
 * bind PART, END and footers to their START. Device sections keep the ids QEMU gave them, so ours is one no real guest reaches.
 */
export const RAM_SECTION_ID = 0x7001;

/** Flag of the record that opens the ram section: the sum of used lengths, then the list of blocks. */
export const RAM_MEM_SIZE = 0x04;
/** Flag of the record that ends each ram section. */
export const RAM_EOS = 0x10;

/** Bytes in a target page of the guests we read and write (x86-64 and others with 4 KiB pages). */
export const PAGE_BYTES = 4096;
/** The same as bits, as subsection `configuration/target-page-bits` writes it. */
export const PAGE_BITS = 12;
/** Bytes in the mapped-ram header of a block: version, page size, bitmap offset, pages offset (`MappedRamHeader`). */
export const BLOCK_HEADER_BYTES = 28;
/** The version of that header that QEMU writes; its loader also takes 0. */
export const BLOCK_HEADER_VERSION = 1;
/** QEMU rounds each block's pages offset, counted from the file's start, up to this (`MAPPED_RAM_FILE_OFFSET_ALIGNMENT`). */
export const PAGES_ALIGNMENT: number = 1024 * 1024;

/** Most RAM blocks we read from an image. Real guests have tens; QEMU itself has no limit. */
export const MAX_BLOCKS = 1024;
/** Longest name of a RAM block: its length is one byte. */
export const MAX_BLOCK_NAME_BYTES = 255;
/** Most guest RAM we read from an image: 32 TiB, whose page bitmaps take 1 GiB. It bounds what a broken file makes us allocate. */
export const MAX_RAM_BYTES: number = 2 ** 45;
/** Most device state we read from an image; ordinary guests have tens of KiB, guests with large virtual GPUs some hundred MiB. */
export const MAX_DEVICE_STATE_BYTES: number = 1024 * 1024 * 1024;
/** Longest machine name we read; QEMU's are below 40 bytes. */
export const MAX_MACHINE_NAME_BYTES = 255;
/** Most capabilities that a configuration section may list; QEMU knows two that it writes there. */
export const MAX_CAPABILITIES = 16;

/** Bytes in the bitmap of a block: one bit a page, in whole 64-bit words (`ramblock_recv_bitmap` on 64-bit hosts). */
export function bitmapBytes(usedLength: number): number {
  return Math.ceil(usedLength / PAGE_BYTES / 64) * 8;
}
