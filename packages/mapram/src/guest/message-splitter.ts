import { MapramError } from '../errors.ts';

/** Far more than QEMU's longest answer, its schema of some 300 KB; whatever sends more is not QMP. */
const MAX_MESSAGE_BYTES = 16 * 1024 * 1024;

const SPACE = 0x20;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPENING_BRACKET = 0x5b;
const OPENING_BRACE = 0x7b;
const CLOSING_BRACKET = 0x5d;
const CLOSING_BRACE = 0x7d;

/** Puts the JSON objects of a byte stream together, each on one line or, as with QEMU's `pretty=on`, on many. */
export class MessageSplitter {
  #parts: Buffer[] = [];
  #bytes = 0;
  /** Brackets and braces that are open; strings do not count. */
  #depth = 0;
  #isInString = false;
  #isEscaped = false;

  /**
   * The texts of the objects that `chunk` completes.
   *
   * @throws {MapramError} E_QMP for an object that is too long, and for anything else between objects.
   */
  push(chunk: Buffer): string[] {
    const texts: string[] = [];
    for (let start = 0; start < chunk.length; ) {
      const byte = chunk[start] as number;
      if (this.#depth === 0 && byte <= SPACE) {
        start += 1;
        continue;
      }
      if (this.#depth === 0 && byte !== OPENING_BRACE) throw noQmp(chunk.subarray(start).toString());
      const end = this.#follow(chunk, start);
      this.#keep(chunk.subarray(start, end));
      if (this.#depth === 0) texts.push(this.#take());
      start = end;
    }
    return texts;
  }

  /** Goes on to the end of the object, or of the chunk, and returns where that is. */
  #follow(chunk: Buffer, start: number): number {
    let at = start;
    do {
      const byte = chunk[at];
      if (this.#isEscaped) this.#isEscaped = false;
      else if (byte === QUOTE) this.#isInString = !this.#isInString;
      else if (this.#isInString) this.#isEscaped = byte === BACKSLASH;
      else if (byte === OPENING_BRACE || byte === OPENING_BRACKET) this.#depth += 1;
      else if (byte === CLOSING_BRACE || byte === CLOSING_BRACKET) this.#depth -= 1;
      at += 1;
    } while (this.#depth > 0 && at < chunk.length);
    return at;
  }

  #keep(part: Buffer): void {
    this.#parts.push(part);
    this.#bytes += part.length;
    if (this.#bytes > MAX_MESSAGE_BYTES) {
      throw new MapramError('E_QMP', `The QMP socket sent a message of more than ${MAX_MESSAGE_BYTES} bytes`);
    }
  }

  #take(): string {
    const text = Buffer.concat(this.#parts).toString();
    this.#parts = [];
    this.#bytes = 0;
    return text;
  }
}

/** The error for what is not QMP; a human monitor, which looks alike on QEMU's command line, is named. */
export function noQmp(text: string): MapramError {
  const isHuman = /^QEMU [\d.]+ monitor/.test(text);
  const hint = isHuman ? '; that is a human monitor (-monitor), and a QMP socket is needed (-qmp)' : '';
  const message = `The socket does not speak QMP: it sent ${JSON.stringify(text.slice(0, 80))}${hint}`;
  return new MapramError('E_QMP', message);
}
