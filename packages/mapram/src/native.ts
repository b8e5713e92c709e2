import { close } from 'node:fs';
import type * as Native from '@mapram/native';
import { late } from './addon.ts';
import type { Copy } from './choices.ts';

export type {
  BlockAddress,
  DirectAlignment,
  ImageSource,
  Job,
  JobProgress,
  JobResult,
  MetadataPart,
  NamedMemory,
} from '@mapram/native';

// The one door to the Rust addon: whatever it throws, or rejects a promise with, leaves here as a MapramError.

/** How the engine moves data. */
export type EngineOptions = Native.TransferOptions & { copy: Copy };

/** The RAM blocks of a guest or of a program, opened for reading or writing. */
export const GuestMemory: typeof Native.GuestMemory = late('GuestMemory');
export type GuestMemory = Native.GuestMemory;

/** An image that is being written: a partial file until it is published, gone once it is discarded; or a block device. */
export const ImageFile: typeof Native.ImageFile = late('ImageFile');
export type ImageFile = Native.ImageFile;

/** A connected Unix stream socket that can pass file descriptors. */
export const UnixConnection: typeof Native.UnixConnection = late('UnixConnection');
export type UnixConnection = Native.UnixConnection;

/** A process that stays known whatever becomes of its number; asking for its end takes no descriptor. */
export const ProcessHandle: typeof Native.ProcessHandle = late('ProcessHandle');
export type ProcessHandle = Native.ProcessHandle;

/** A job that makes pages with clear bits read zero and then puts the image's pages in place. */
export const restoreMemory: typeof Native.restore = late('restore');

/** A job that compares the memory that is mapped for reading only with the image, and results in a page that differs. */
export const compareMemory: typeof Native.compare = late('compare');

/** A job that reads what is planned and counts the bytes that a save would write. */
export const measureMemory: typeof Native.measure = late('measure');

/** A job that fails with E_NO_SPACE if a tmpfs or the huge pages of the memory cannot take the pages that the bitmaps mark. */
export const requireRoom: typeof Native.requireRoom = late('requireRoom');

/** A job that makes every page with a clear bit read zero. */
export const clearMemory: typeof Native.clear = late('clear');

/** A new anonymous file in memory; the caller closes the descriptor. */
export const createMemfd: typeof Native.createMemfd = late('createMemfd');

/** Opens anew, for reading, the file that a descriptor leads to, for direct I/O if `direct`; the caller closes the descriptor. */
export const reopenForReading: typeof Native.reopenForReading = late('reopenForReading');

/** Bytes in the file or the block device that a descriptor leads to. */
export const lengthInBytes: typeof Native.lengthInBytes = late('lengthInBytes');

/** Bytes that can still be written to the file system of a directory; without end where it does not say. */
export const freeBytes: typeof Native.freeBytes = late('freeBytes');

/** Fails unless the host's pages are of 4 KiB: mapram does not work with others. */
export const checkPageSize: typeof Native.checkPageSize = late('checkPageSize');

/** Longest run of zero pages between data that a save writes along with its neighbours. */
export const joinedZeroPages: typeof Native.joinedZeroPages = late('joinedZeroPages');

/** The engine of that name, or the one that `auto` stands for on this host; fails with the reason if it does not work. */
export const chooseEngine: typeof Native.chooseEngine = late('chooseEngine');

/** Closes a descriptor. What close(2) has to say comes too late to change what was done, so it is not heard. */
export function closeFd(fd: number): void {
  // Off Node's thread: a file system that hangs may keep it.
  close(fd, () => {});
}
