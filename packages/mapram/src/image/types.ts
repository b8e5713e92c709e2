/** Bytes that {@link readImage} wants next; whoever drives it hands back exactly these, in an array that nobody changes any more. */
export interface ReadRequest {
  /** Offset from the file's start. */
  offset: number;
  /** Number of bytes; the range never goes beyond the file's length. */
  length: number;
}

/** Where the parts of one RAM block lie. All offsets count from the start of the file, whatever the image's base offset. */
export interface BlockLayout {
  /** The block's name (idstr), as QEMU's `x-query-ramblock` lists it. */
  name: string;
  /** Bytes of RAM in the block; a multiple of 4096. */
  usedLength: number;
  /** Where the block's record (its name's length byte) begins; the mapped-ram header is part of that record. */
  headerOffset: number;
  /** Where the page bitmap begins. */
  bitmapOffset: number;
  /** Where page 0 lies; page *i* lies at `pagesOffset + 4096 * i`. */
  pagesOffset: number;
}

/** One RAM block of an image, as read. */
export interface ImageBlock extends BlockLayout {
  /** Version of the mapped-ram header: 0 or 1. */
  headerVersion: number;
  /** One bit a page, least significant bit of byte 0 first; set: the page is in the image, clear: it reads zero. */
  bitmap: Uint8Array;
  /** Number of set bits. */
  setPages: number;
}

/** A mapped-ram image, read and checked. */
export interface Image {
  /** Where the stream begins in the file. */
  base: number;
  /** Versioned machine type, such as `pc-q35-10.0`. */
  machine: string;
  /** Capabilities that the configuration section lists; `mapped-ram` is among them. */
  capabilities: string[];
  /** Bits of a target page, where the image says them (never on x86). */
  targetPageBits: number | undefined;
  /** The guest's UUID in its usual form, where the image records one. */
  uuid: string | undefined;
  /** The id of the ram section. */
  ramSectionId: number;
  /** Sum of the blocks' used lengths. */
  totalLength: number;
  /** The blocks in the order of the stream. */
  blocks: ImageBlock[];
  /** The device sections: all bytes behind the ram section up to and with the EOF byte. */
  deviceState: Uint8Array;
  /** The JSON text that describes the device sections, where the image has one. */
  vmdesc: Uint8Array | undefined;
  /** The state the guest was in when saved (`running`, `paused`, ...), where the device state records it. */
  runState: string | undefined;
  /** Offset right behind the stream. */
  end: number;
  /** Bytes of the file behind the stream; QEMU ignores them. */
  trailingBytes: number;
}
