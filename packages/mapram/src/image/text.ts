const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** The text in `bytes`, or undefined if they are empty, not UTF-8, or hold control characters. */
export function decodePrintable(bytes: Uint8Array): string | undefined {
  try {
    const text = decoder.decode(bytes);
    return isPrintable(text) ? text : undefined;
  } catch {
    return undefined;
  }
}

/** Whether `text` is non-empty and free of control characters. */
export function isPrintable(text: string): boolean {
  return /^\P{Cc}+$/u.test(text);
}

/** The UTF-8 bytes of `text`. */
export function encodeText(text: string): Uint8Array {
  return encoder.encode(text);
}

/** The same bytes with Node's ways to read them. */
export function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
