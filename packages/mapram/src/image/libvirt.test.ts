import { describe, expect, it } from 'vitest';
import { fileOf, read, sample } from './read.fixture.ts';
import { encodeText } from './text.ts';

const XML_BYTES = 67_157;
const STREAM = 92 + XML_BYTES;

/** An image behind the header that libvirt 11.3 writes on a little-endian host. */
function libvirtImage(format: number, isLittle = true, magic = 'LibvirtQemudSave'): Uint8Array {
  const file = fileOf(sample({ base: STREAM }));
  file.set(encodeText(magic));
  const header = new DataView(file.buffer, 16);
  for (const [index, word] of [2, XML_BYTES, 1, format].entries())
    header.setUint32(4 * index, word, isLittle);
  return file;
}

describe('a libvirt save image', () => {
  it.each([true, false])('is named as one, with the offset to use (little-endian: %s)', (isLittle) => {
    const file = libvirtImage(6, isLittle);
    expect(() => read(file)).toThrow(
      expect.objectContaining({
        code: 'E_IMAGE_INVALID',
        message: expect.stringMatching(/libvirt save image \(format sparse\).*at offset 67249; name that/),
      }),
    );
    expect(read(file, STREAM).machine).toBe('pc-q35-10.0');
  });

  it.each([
    [0, 'is no mapped-ram image'],
    [5, '(format zstd)'],
    [5, 'is compressed'],
    [99, '(format number 99)'],
  ])('of format %i cannot be read: %s', (format, reason) => {
    expect(() => read(libvirtImage(format))).toThrow(reason);
  });

  it('that was not finished is no other file either', () => {
    expect(() => read(libvirtImage(6, true, 'LibvirtQemudPart'))).toThrow('not finished');
    expect(() => read(encodeText('LibvirtQemudSave'))).toThrow('does not begin with QEVM');
  });
});
