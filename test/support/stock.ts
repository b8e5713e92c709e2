import type { Qemu } from './qemu.ts';
import { waitFor } from './wait.ts';

/** How QEMU itself moves an image. */
export interface StockOptions {
  multifd?: boolean;
  directIo?: boolean;
  /** Streams of multifd; 4 by default. */
  channels?: number;
}

/** Saves by QEMU's own mapped-ram migration; the guest is paused (`postmigrate`) afterwards. */
export async function stockSave(qemu: Qemu, path: string, options: StockOptions = {}): Promise<void> {
  await configure(qemu, options);
  await qemu.qmp.execute('migrate', { uri: `file:${path}` });
  await migrationEnd(qemu);
}

/** Loads by QEMU's own loader into a QEMU that was started with `-incoming defer`. */
export async function stockLoad(qemu: Qemu, path: string, options: StockOptions = {}): Promise<void> {
  await configure(qemu, options);
  await qemu.qmp.execute('migrate-incoming', { uri: `file:${path}`, 'exit-on-error': false });
  await migrationEnd(qemu);
}

async function configure(qemu: Qemu, options: StockOptions): Promise<void> {
  await qemu.qmp.execute('migrate-set-capabilities', {
    capabilities: [
      { capability: 'mapped-ram', state: true },
      { capability: 'multifd', state: options.multifd ?? false },
    ],
  });
  await qemu.qmp.execute('migrate-set-parameters', {
    'max-bandwidth': 0,
    'multifd-channels': options.channels ?? 4,
    'direct-io': options.directIo ?? false,
  });
}

async function migrationEnd(qemu: Qemu): Promise<void> {
  const end = await waitFor('the migration to end', 180_000, async () => {
    if (!qemu.alive()) throw new Error(`QEMU ended: ${qemu.complaints()}`);
    const state = await qemu.qmp.execute<{ status?: string; 'error-desc'?: string }>('query-migrate');
    return state.status === 'completed' || state.status === 'failed' ? state : undefined;
  });
  if (end.status !== 'completed')
    throw new Error(`migration failed: ${end['error-desc']} ${qemu.complaints()}`);
}
