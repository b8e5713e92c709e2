import { StringDecoder } from 'node:string_decoder';
import { MapramError } from '../errors.ts';

/** Far more than QEMU's longest answer, its schema of some 300 KB; whatever sends more is not QMP. */
const MAX_LINE_BYTES = 16 * 1024 * 1024;

/** Puts the lines of a byte stream together. */
export class LineSplitter {
  readonly #decoder = new StringDecoder('utf8');
  #rest: string[] = [];
  #restLength = 0;

  /**
   * The lines that `chunk` completes, without their ends.
   *
   * @throws {MapramError} E_QMP for a line that is too long.
   */
  push(chunk: Buffer): string[] {
    const parts = this.#decoder.write(chunk).split('\n');
    const last = parts.pop() ?? '';
    const lines = parts.map((part) => `${this.#takeRest()}${part}`.trim());
    this.#rest.push(last);
    this.#restLength += last.length;
    if (this.#restLength > MAX_LINE_BYTES) {
      throw new MapramError('E_QMP', `The QMP socket sent a line of more than ${MAX_LINE_BYTES} bytes`);
    }
    return lines.filter((line) => line !== '');
  }

  #takeRest(): string {
    const text = this.#rest.join('');
    this.#rest = [];
    this.#restLength = 0;
    return text;
  }
}
