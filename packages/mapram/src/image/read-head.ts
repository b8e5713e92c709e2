import type { Cursor, Reading } from './cursor.ts';
import {
  CAPABILITY_IGNORE_SHARED,
  CAPABILITY_MAPPED_RAM,
  MAX_CAPABILITIES,
  MAX_MACHINE_NAME_BYTES,
  PAGE_BITS,
  SECTION,
  STREAM_MAGIC,
  STREAM_VERSION,
  SUBSECTION_CAPABILITIES,
  SUBSECTION_TARGET_PAGE_BITS,
  SUBSECTION_UUID,
} from './format.ts';
import { invalid } from './invalid.ts';
import { refuseLibvirt } from './libvirt.ts';
import { decodePrintable } from './text.ts';
import type { Image } from './types.ts';

/** What the file header and the configuration section say. */
export type Configuration = Pick<Image, 'machine' | 'capabilities' | 'targetPageBits' | 'uuid'>;

/** Reads the file header and the configuration section, up to the type byte of the first section. */
export function* readHead(cursor: Cursor): Reading<Configuration> {
  const start = cursor.position;
  yield* refuseLibvirt(cursor);
  if ((yield* cursor.be32('magic')) !== STREAM_MAGIC) {
    throw invalid('This is no migration stream of QEMU: it does not begin with QEVM', start, 'magic');
  }
  const version = yield* cursor.be32('version');
  if (version !== STREAM_VERSION)
    throw invalid(`Stream version ${version} is not ${STREAM_VERSION}`, start + 4, 'version');
  const marker = yield* cursor.u8('configuration');
  if (marker !== SECTION.CONFIGURATION) {
    throw invalid(
      'The configuration section is missing, so this is no mapped-ram image',
      start + 8,
      'configuration',
    );
  }
  const machine = yield* readMachine(cursor);
  const configuration: Configuration = {
    machine,
    capabilities: [],
    targetPageBits: undefined,
    uuid: undefined,
  };
  yield* readSubsections(cursor, configuration);
  if (!configuration.capabilities.includes(CAPABILITY_MAPPED_RAM)) {
    const message =
      'This is a migration stream, but not a mapped-ram image: capability mapped-ram is not listed';
    throw invalid(message, cursor.position, 'capabilities');
  }
  return configuration;
}

/** A name behind its length byte; refuses one that is empty or unprintable. */
export function* readShortName(cursor: Cursor, field: string): Reading<string> {
  const offset = cursor.position;
  const length = yield* cursor.u8(`${field} length`);
  if (length === 0) throw invalid(`The ${field} is empty`, offset, `${field} length`);
  const name = decodePrintable(yield* cursor.take(length, field));
  if (name === undefined) throw invalid(`The ${field} is not printable text`, offset + 1, field);
  return name;
}

function* readMachine(cursor: Cursor): Reading<string> {
  const offset = cursor.position;
  const length = yield* cursor.be32('machine name length');
  if (length === 0 || length > MAX_MACHINE_NAME_BYTES) {
    throw invalid(`A machine name of ${length} bytes is not possible`, offset, 'machine name length');
  }
  const machine = decodePrintable(yield* cursor.take(length, 'machine name'));
  if (machine === undefined)
    throw invalid('The machine name is not printable text', offset + 4, 'machine name');
  return machine;
}

function* readSubsections(cursor: Cursor, configuration: Configuration): Reading<void> {
  const seen = new Set<string>();
  while ((yield* cursor.u8('section type')) === SECTION.SUBSECTION) {
    const offset = cursor.position;
    const name = yield* readShortName(cursor, 'subsection name');
    if (seen.has(name)) throw invalid(`Subsection ${name} is there twice`, offset, 'subsection name');
    seen.add(name);
    const versionOffset = cursor.position;
    const version = yield* cursor.be32('subsection version');
    if (version !== 1)
      throw invalid(`Subsection ${name} has version ${version}, not 1`, versionOffset, 'subsection version');
    if (name === SUBSECTION_CAPABILITIES) configuration.capabilities = yield* readCapabilities(cursor);
    else if (name === SUBSECTION_TARGET_PAGE_BITS) configuration.targetPageBits = yield* readPageBits(cursor);
    else if (name === SUBSECTION_UUID) configuration.uuid = formatUuid(yield* cursor.take(16, 'uuid'));
    else throw invalid(`The configuration has an unknown subsection ${name}`, offset, 'subsection name');
  }
  cursor.position -= 1;
}

function* readCapabilities(cursor: Cursor): Reading<string[]> {
  const offset = cursor.position;
  const count = yield* cursor.be32('capability count');
  if (count === 0 || count > MAX_CAPABILITIES) {
    throw invalid(`A list of ${count} capabilities is not possible`, offset, 'capability count');
  }
  const names: string[] = [];
  for (let index = 0; index < count; index += 1) {
    const nameOffset = cursor.position;
    const name = yield* readShortName(cursor, 'capability');
    if (name !== CAPABILITY_MAPPED_RAM && name !== CAPABILITY_IGNORE_SHARED) {
      throw invalid(`The image needs capability ${name}, which is unknown`, nameOffset, 'capability');
    }
    if (names.includes(name)) throw invalid(`Capability ${name} is listed twice`, nameOffset, 'capability');
    names.push(name);
  }
  return names;
}

function* readPageBits(cursor: Cursor): Reading<number> {
  const offset = cursor.position;
  const bits = yield* cursor.be32('target-page-bits');
  if (bits !== PAGE_BITS)
    throw invalid(`Pages of 2^${bits} bytes are not supported, only 2^12`, offset, 'target-page-bits');
  return bits;
}

function formatUuid(bytes: Uint8Array): string {
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}
