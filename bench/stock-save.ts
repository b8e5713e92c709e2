import { open } from 'node:fs/promises';
import type { Qemu } from '../test/support/qemu.ts';
import { interruption } from './interruption.ts';

/** A way in which QEMU itself writes and reads a saved guest. */
export interface StockMethod {
  type: string;
  mappedRam: boolean;
  multifd: boolean;
  directIo: boolean;
}

/** QEMU's ways; only those with multifd have channels. */
export const STOCK_METHODS: StockMethod[] = [
  { type: 'QEMU file:', mappedRam: false, multifd: false, directIo: false },
  { type: 'QEMU mapped-ram', mappedRam: true, multifd: false, directIo: false },
  { type: 'QEMU mapped-ram + multifd', mappedRam: true, multifd: true, directIo: false },
  { type: 'QEMU mapped-ram + multifd + direct-io', mappedRam: true, multifd: true, directIo: true },
];

/** QEMU's way with direct I/O, which ratios are formed against: it alone leaves the page cache to others. */
export const DIRECT_STOCK_TYPE = 'QEMU mapped-ram + multifd + direct-io';

/** A method, and its channels if it has any. */
export interface StockWay {
  method: StockMethod;
  channels?: number;
}

/** The methods that have channels once for each count, the others once. */
export function stockWays(methods: StockMethod[], counts: number[]): StockWay[] {
  return methods.flatMap((method) =>
    method.multifd ? counts.map((channels) => ({ method, channels })) : [{ method }],
  );
}

/** Sets everything that a migration by `method` needs; no bandwidth limit, and events that tell its end at once. */
export async function configureStock(guest: Qemu, method: StockMethod, channels: number): Promise<void> {
  await guest.qmp.execute('migrate-set-capabilities', {
    capabilities: [
      { capability: 'events', state: true },
      { capability: 'mapped-ram', state: method.mappedRam },
      { capability: 'multifd', state: method.multifd },
    ],
  });
  await guest.qmp.execute('migrate-set-parameters', {
    'max-bandwidth': 0,
    'multifd-channels': channels,
    'direct-io': method.directIo,
  });
}

/** Starts a migration by `command` and waits for its end, in its sleep: neither QEMU nor a processor that it needs is disturbed. */
export async function migrate(
  guest: Qemu,
  command: 'migrate' | 'migrate-incoming',
  uri: string,
): Promise<void> {
  const seen = guest.qmp.events.length;
  await guest.qmp.execute(command, {
    uri,
    ...(command === 'migrate-incoming' ? { 'exit-on-error': false } : {}),
  });
  for (let end = endSince(guest, seen); end !== 'completed'; end = endSince(guest, seen)) {
    interruption.throwIfAborted();
    if (!guest.alive()) throw new Error(`QEMU ended: ${guest.complaints()}`);
    if (end === 'failed') {
      const state = await guest.qmp.execute<{ 'error-desc'?: string }>('query-migrate');
      throw new Error(`QEMU's migration failed: ${state['error-desc']} ${guest.complaints()}`);
    }
    await guest.qmp.arrival(200);
  }
}

/** How the migration ended, if it has by one of the events from number `seen` on. */
function endSince(guest: Qemu, seen: number): 'completed' | 'failed' | undefined {
  const states = guest.qmp.events
    .slice(seen)
    .map(({ event, data }) => (event === 'MIGRATION' ? data?.['status'] : undefined));
  return (['completed', 'failed'] as const).find((state) => states.includes(state));
}

/**
 * Lets QEMU save a guest and puts the image on the disk, which QEMU leaves out: the time until this returns is what is measured.
 *
 * @returns CPU seconds that this process spent on that: writing back the page cache is the work of whoever asks for it.
 */
export async function stockSaveDurably(guest: Qemu, image: string): Promise<number> {
  await migrate(guest, 'migrate', `file:${image}`);
  const before = process.cpuUsage();
  const file = await open(image, 'r+');
  try {
    await file.datasync();
  } finally {
    await file.close();
  }
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
}

/** Makes a guest that was saved by QEMU one that can be saved again: QEMU refuses to migrate out of `postmigrate`. */
export async function readyAgain(guest: Qemu): Promise<void> {
  await guest.qmp.execute('system_reset');
  await guest.qmp.waitForStatus('prelaunch');
}
