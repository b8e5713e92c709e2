import { encodeText } from './text.ts';

/** Assembles the small parts of a stream: big-endian fields one after the other. */
export class ByteWriter {
  readonly #chunks: Uint8Array[] = [];

  u8(value: number): this {
    return this.bytes(Uint8Array.of(value));
  }

  be16(value: number): this {
    return this.#field(2, (view) => view.setUint16(0, value));
  }

  be32(value: number): this {
    return this.#field(4, (view) => view.setUint32(0, value));
  }

  be64(value: number): this {
    return this.#field(8, (view) => view.setBigUint64(0, BigInt(value)));
  }

  /** A text behind its length in one byte. */
  shortText(text: string): this {
    const encoded = encodeText(text);
    return this.u8(encoded.length).bytes(encoded);
  }

  /** A text behind its length in four bytes. */
  longText(text: string): this {
    const encoded = encodeText(text);
    return this.be32(encoded.length).bytes(encoded);
  }

  bytes(bytes: Uint8Array): this {
    this.#chunks.push(bytes);
    return this;
  }

  /** All that was written, as one array. */
  toBytes(): Uint8Array {
    const { buffer, byteOffset, length } = Buffer.concat(this.#chunks);
    return new Uint8Array(buffer, byteOffset, length);
  }

  #field(length: number, set: (view: DataView) => void): this {
    const chunk = new Uint8Array(length);
    set(new DataView(chunk.buffer));
    return this.bytes(chunk);
  }
}
