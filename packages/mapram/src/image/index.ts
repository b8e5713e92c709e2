export { countSetPages, dataExtents } from './bitmap.ts';
export { findRunState, patchRunState, splitDevicesState } from './device-state.ts';
export { type EncodedImage, encodeImage, encodeRamlessStream, type ImagePart } from './encode.ts';
export { bitmapBytes, MAX_DEVICE_STATE_BYTES, PAGE_BYTES } from './format.ts';
export { type BlockSize, type Layout, layoutImage } from './layout.ts';
export { readImage } from './read.ts';
export type { Image, ImageBlock } from './types.ts';
