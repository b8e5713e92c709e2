import { existsSync } from 'node:fs';
import { MapramError } from '../errors.ts';

/** Where a QMP socket is. */
export interface QmpAddress {
  /** As the addon takes it: a path, or an abstract name behind a NUL. */
  socket: string;
  /** As messages name it. */
  name: string;
}

/** Bytes of a socket's name in an address that an abstract one fills to the end unless it is "tight" (unix(7)). */
const NAME_BYTES = 107;
const OTHER_KINDS =
  /^(tcp|telnet|tn3270|websocket|udp|vsock|fd|stdio|pty|chardev|vc|null|mon|pipe):|^[\w.-]+:\d+(,|$)/;
/** Of a socket that QEMU listens on; all but the last two make no difference to whoever connects. */
const SOCKET_OPTIONS =
  /^(no)?(server|wait|mux|telnet|tn3270|websocket|reconnect|reconnect-ms|logfile|logappend|abstract|tight)(=.*)?$/;

/**
 * Reads what a caller names as the QMP socket: a path; `@NAME`, in the abstract namespace; or what stands behind QEMU's own
 * `-qmp`, as `unix:PATH,server=on`.
 *
 * @throws {MapramError} E_USAGE for anything over which descriptors cannot be passed.
 */
export function parseQmpAddress(text: string): QmpAddress {
  // A file may have any name, such as `vm.1:4`.
  if (OTHER_KINDS.test(text) && !existsSync(text)) {
    const message = `${text} is no unix socket, and over nothing else can mapram pass descriptors to QEMU: give QEMU one on this host (-qmp unix:PATH,server=on,wait=off)`;
    throw new MapramError('E_USAGE', message, { field: 'qmp' });
  }
  if (text.startsWith('@')) return abstract(text.slice(1));
  if (!text.startsWith('unix:')) return { socket: text, name: text };
  // QEMU doubles a comma that is part of a value.
  const [path = '', ...options] = text
    .slice('unix:'.length)
    .split(/(?<!,),(?!,)/)
    .map((part) => part.replaceAll(',,', ','));
  const unknown = options.find((option) => !SOCKET_OPTIONS.test(option));
  if (unknown !== undefined)
    throw new MapramError('E_USAGE', `QEMU has no option ${unknown} for a unix socket`, { field: 'qmp' });
  if (path === '') throw new MapramError('E_USAGE', `${text} names no socket`, { field: 'qmp' });
  if (!options.some((option) => /^abstract(=on)?$/.test(option))) return { socket: path, name: path };
  return abstract(options.includes('tight=off') ? path.padEnd(NAME_BYTES, '\0') : path);
}

function abstract(name: string): QmpAddress {
  return { socket: `\0${name}`, name: `@${name.replace(/\0+$/, '')}` };
}
