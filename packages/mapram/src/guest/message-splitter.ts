import { StringDecoder } from 'node:string_decoder';
import { MapramError } from '../errors.ts';

/** Far more than QEMU's longest answer, its schema of some 300 KB; whatever sends more is not QMP. */
const MAX_MESSAGE_LENGTH = 16 * 1024 * 1024;
/** An object on one line; or, with QEMU's `pretty=on`, on many, of which all but the first and the last are indented. */
const OBJECT = /\s*(\{(?:[^\n]*\}|.*?\n\}))\r?\n/gsy;

/** Puts the JSON objects of a byte stream together, each of which ends with its line. */
export class MessageSplitter {
  readonly #decoder = new StringDecoder();
  #text = '';

  /**
   * The texts of the objects that `chunk` completes.
   *
   * @throws {MapramError} E_QMP for an object that is too long, and for anything else between objects.
   */
  push(chunk: Buffer): string[] {
    const goesOn = this.#text !== '' && !chunk.includes('\n');
    this.#text += this.#decoder.write(chunk);
    if (this.#text.length > MAX_MESSAGE_LENGTH) {
      const message = `The QMP socket sent a message of more than ${MAX_MESSAGE_LENGTH} bytes`;
      throw new MapramError('E_QMP', message);
    }
    if (goesOn) return [];
    const found = [...this.#text.matchAll(OBJECT)];
    const length = found.reduce((sum, [whole]) => sum + whole.length, 0);
    this.#text = this.#text.slice(length).trimStart();
    if (this.#text !== '' && !this.#text.startsWith('{')) throw noQmp(this.#text);
    return found.map(([, text]) => text as string);
  }
}

/** The error for what is not QMP; a human monitor, which looks alike on QEMU's command line, is named. */
export function noQmp(text: string): MapramError {
  const isHuman = /^QEMU [\d.]+ monitor/.test(text);
  const hint = isHuman ? '; that is a human monitor (-monitor), and a QMP socket is needed (-qmp)' : '';
  const message = `The socket does not speak QMP: it sent ${JSON.stringify(text.slice(0, 80))}${hint}`;
  return new MapramError('E_QMP', message);
}
