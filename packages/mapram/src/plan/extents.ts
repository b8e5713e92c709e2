/** Bytes in all extents, which are what memory was scanned for. */
export function bytesIn(extents: readonly Float64Array[]): number {
  let bytes = 0;
  for (const list of extents)
    for (let index = 1; index < list.length; index += 3) bytes += list[index] as number;
  return bytes;
}
