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
import type { Image } from './types.ts';

/** What the file header and the configuration section say. */
export type Configuration = Pick<Image, 'machine' | 'capabilities' | 'targetPageBits' | 'uuid'>;

/** Reads the file header and the configuration section, up to the type byte of the first section. */
export function* readHead(cursor: Cursor): Reading<Configuration> {
  yield* refuseLibvirt(cursor);
  if ((yield* cursor.be32('magic')) !== STREAM_MAGIC) {
    throw cursor.wrong('This is no migration stream of QEMU: it does not begin with QEVM');
  }
  const version = yield* cursor.be32('version');
  if (version !== STREAM_VERSION) throw cursor.wrong(`Stream version ${version} is not ${STREAM_VERSION}`);
  if ((yield* cursor.u8('configuration')) !== SECTION.CONFIGURATION) {
    throw cursor.wrong('The configuration section is missing, so this is no mapped-ram image');
  }
  const length = yield* cursor.be32('machine name length');
  if (length === 0 || length > MAX_MACHINE_NAME_BYTES) {
    throw cursor.wrong(`A machine name of ${length} bytes is not possible`);
  }
  const machine = yield* cursor.text(length, 'machine name');
  const configuration = yield* readSubsections(cursor, machine);
  if (!configuration.capabilities.includes(CAPABILITY_MAPPED_RAM)) {
    const message =
      'This is a migration stream, but not a mapped-ram image: capability mapped-ram is not listed';
    throw invalid(message, cursor.position, 'capabilities');
  }
  return configuration;
}

function* readSubsections(cursor: Cursor, machine: string): Reading<Configuration> {
  const found: Configuration = { machine, capabilities: [], targetPageBits: undefined, uuid: undefined };
  const seen = new Set<string>();
  while ((yield* cursor.u8('section type')) === SECTION.SUBSECTION) {
    const offset = cursor.position;
    const name = yield* cursor.shortText('subsection name');
    if (seen.has(name)) throw cursor.wrong(`Subsection ${name} is there twice`);
    seen.add(name);
    const version = yield* cursor.be32('subsection version');
    if (version !== 1) throw cursor.wrong(`Subsection ${name} has version ${version}, not 1`);
    if (name === SUBSECTION_CAPABILITIES) found.capabilities = yield* readCapabilities(cursor);
    else if (name === SUBSECTION_TARGET_PAGE_BITS) found.targetPageBits = yield* readPageBits(cursor);
    else if (name === SUBSECTION_UUID) found.uuid = formatUuid(yield* cursor.take(16, 'uuid'));
    else throw invalid(`The configuration has an unknown subsection ${name}`, offset, 'subsection name');
  }
  cursor.position -= 1;
  return found;
}

function* readCapabilities(cursor: Cursor): Reading<string[]> {
  const count = yield* cursor.be32('capability count');
  if (count === 0 || count > MAX_CAPABILITIES) {
    throw cursor.wrong(`A list of ${count} capabilities is not possible`);
  }
  const names: string[] = [];
  while (names.length < count) {
    const name = yield* cursor.shortText('capability');
    if (name !== CAPABILITY_MAPPED_RAM && name !== CAPABILITY_IGNORE_SHARED) {
      throw cursor.wrong(`The image needs capability ${name}, which is unknown`);
    }
    if (names.includes(name)) throw cursor.wrong(`Capability ${name} is listed twice`);
    names.push(name);
  }
  return names;
}

function* readPageBits(cursor: Cursor): Reading<number> {
  const bits = yield* cursor.be32('target-page-bits');
  if (bits !== PAGE_BITS) throw cursor.wrong(`Pages of 2^${bits} bytes are not supported, only 2^12`);
  return bits;
}

function formatUuid(bytes: Buffer): string {
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}
