import { open } from 'node:fs/promises';
import type { Qemu } from '../test/support/qemu.ts';
import { waitFor } from '../test/support/wait.ts';
import { interruption } from './interruption.ts';

/** A way in which QEMU itself writes and reads a saved guest. */
export interface StockMethod {
  type: string;
  mappedRam: boolean;
  multifd: boolean;
  directIo: boolean;
}

/** QEMU's ways, slowest first; only those with multifd have channels. */
export const STOCK_METHODS: StockMethod[] = [
  { type: 'QEMU file:', mappedRam: false, multifd: false, directIo: false },
  { type: 'QEMU mapped-ram', mappedRam: true, multifd: false, directIo: false },
  { type: 'QEMU mapped-ram + multifd', mappedRam: true, multifd: true, directIo: false },
  { type: 'QEMU mapped-ram + multifd + direct-io', mappedRam: true, multifd: true, directIo: true },
];

/** QEMU's best way, which ratios are formed against. */
export const BEST_STOCK_TYPE = 'QEMU mapped-ram + multifd + direct-io';

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

/** Starts a migration by `command` and waits for its end. Polls a list in this process: QEMU is not disturbed. */
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
  const end = await waitFor(
    'the migration to end',
    600_000,
    () => {
      interruption.throwIfAborted();
      if (!guest.alive()) throw new Error(`QEMU ended: ${guest.complaints()}`);
      return guest.qmp.events
        .slice(seen)
        .find(
          ({ event, data }) =>
            event === 'MIGRATION' && ['completed', 'failed'].includes(String(data?.['status'])),
        );
    },
    1,
  );
  if (end.data?.['status'] !== 'completed') {
    const state = await guest.qmp.execute<{ 'error-desc'?: string }>('query-migrate');
    throw new Error(`QEMU's migration failed: ${state['error-desc']} ${guest.complaints()}`);
  }
}

/** Lets QEMU save a guest and puts the image on the disk, which QEMU leaves out: the time until this returns is what is measured. */
export async function stockSaveDurably(guest: Qemu, image: string): Promise<void> {
  await migrate(guest, 'migrate', `file:${image}`);
  const file = await open(image, 'r+');
  await file.datasync();
  await file.close();
}

/** Makes a guest that was saved by QEMU one that can be saved again: QEMU refuses to migrate out of `postmigrate`. */
export async function readyAgain(guest: Qemu): Promise<void> {
  await guest.qmp.execute('system_reset');
  await guest.qmp.waitForStatus('prelaunch');
}
