export {
  countSetPages,
  dataExtents,
  highestSetPage,
  lowestSetPage,
  type PageRun,
  setRuns,
} from './bitmap.ts';
export { findRunState, patchRunState, type RecordedRunState, splitDevicesState } from './device-state.ts';
export {
  type EncodedImage,
  type EncodeOptions,
  encodeImage,
  encodeRamlessStream,
  type ImagePart,
  type RamlessOptions,
} from './encode.ts';
export { bitmapBytes, PAGE_BYTES, RAM_SECTION_ID } from './format.ts';
export { type BlockSize, type Layout, type LayoutOptions, layoutImage } from './layout.ts';
export { readImage } from './read.ts';
export type { BlockLayout, Image, ImageBlock, ReadRequest } from './types.ts';
