import { ByteWriter } from './byte-writer.ts';
import {
  RAM_EOS,
  RAM_MEM_SIZE,
  RAM_SECTION_ID,
  RAM_SECTION_NAME,
  RAM_SECTION_VERSION,
  SECTION,
  STREAM_MAGIC,
  STREAM_VERSION,
  SUBSECTION_CAPABILITIES,
} from './format.ts';

/**
 * The stream from its magic to the ram section's total, behind which the first block's record stands.
 *
 * @param capabilities listed in the configuration section; without any the section has no such subsection, as QEMU writes it.
 */
export function streamHead(
  machine: string,
  capabilities: readonly string[],
  blocks: readonly { usedLength: number }[],
): ByteWriter {
  const totalLength = blocks.reduce((sum, { usedLength }) => sum + usedLength, 0);
  const head = new ByteWriter()
    .be32(STREAM_MAGIC)
    .be32(STREAM_VERSION)
    .u8(SECTION.CONFIGURATION)
    .longText(machine);
  if (capabilities.length > 0) {
    head.u8(SECTION.SUBSECTION).shortText(SUBSECTION_CAPABILITIES).be32(1).be32(capabilities.length);
    for (const name of capabilities) head.shortText(name);
  }
  return head
    .u8(SECTION.START)
    .be32(RAM_SECTION_ID)
    .shortText(RAM_SECTION_NAME)
    .be32(0)
    .be32(RAM_SECTION_VERSION)
    .be64(totalLength + RAM_MEM_SIZE);
}

/** Ends a section of the ram handler: the end-of-section record and the footer. */
export function endRamSection(writer: ByteWriter): ByteWriter {
  return writer.be64(RAM_EOS).u8(SECTION.FOOTER).be32(RAM_SECTION_ID);
}

/** Ends the stream: the device sections, which carry their EOF byte, and the description of them. */
export function endStream(writer: ByteWriter, deviceState: Uint8Array, vmdesc: Uint8Array): ByteWriter {
  return writer.bytes(deviceState).u8(SECTION.VMDESCRIPTION).be32(vmdesc.length).bytes(vmdesc);
}
