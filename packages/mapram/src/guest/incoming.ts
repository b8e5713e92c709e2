import { setTimeout as delay } from 'node:timers/promises';
import { MapramError } from '../errors.ts';
import { type ExecuteOptions, GIVE_BACK_TIMEOUT_MS, type Monitor } from './monitor.ts';
import type { GuestOwner } from './owner.ts';
import { isMigrating } from './preflight.ts';
import {
  queryCapabilities,
  queryCommands,
  queryMachine,
  queryMigration,
  queryParameters,
  queryStatus,
} from './queries.ts';
import { queryRamBlocks, type RamBlock } from './ram-blocks.ts';

const RESTORE_COMMANDS = ['x-query-ramblock', 'migrate-incoming', 'query-cpus-fast', 'qom-get', 'qom-list'];
const LONGEST_POLL_MS = 100;
/** From the end of the load to the guest's own state QEMU takes milliseconds; it may be busy with the guest's disks. */
const LONGEST_TAKING_UP_MS = 60_000;

/** A QEMU that waits for a guest. */
export interface WaitingGuest {
  /** Versioned machine type, such as `pc-q35-10.0`. */
  machine: string;
  /** Its RAM blocks. */
  blocks: RamBlock[];
  /** Its migration capabilities, and whether each is on. */
  capabilities: Map<string, boolean>;
  /** Its migration parameters. */
  parameters: Record<string, unknown>;
}

/** Migration settings of QEMU by their names. */
export interface MigrationSettings {
  /** Capabilities to be on or off. */
  capabilities: Readonly<Record<string, boolean>>;
  /** Parameters and the values that they shall have. */
  parameters: Readonly<Record<string, unknown>>;
}

/**
 * Looks at a QEMU that was started with `-incoming defer`; nothing in it is changed.
 *
 * @throws {MapramError} E_GUEST_UNSUPPORTED if it does not wait for an image.
 */
export async function inspectWaitingGuest(monitor: Monitor, options: ExecuteOptions): Promise<WaitingGuest> {
  const commands = await queryCommands(monitor, options);
  const missing = RESTORE_COMMANDS.filter((command) => !commands.has(command));
  if (missing.length > 0) throw unsupported(`it has no QMP command ${missing.join(', ')}`);
  await requireWaiting(monitor, options);
  return {
    machine: await queryMachine(monitor, options),
    blocks: await queryRamBlocks(monitor, options),
    capabilities: await queryCapabilities(monitor, options),
    parameters: await queryParameters(monitor, options),
  };
}

/**
 * Refuses a QEMU that does not wait, or not any more: another client may have given it a guest since it was looked at.
 *
 * @throws {MapramError} E_GUEST_UNSUPPORTED
 */
export async function requireWaiting(monitor: Monitor, options: ExecuteOptions): Promise<void> {
  const { status } = await queryStatus(monitor, options);
  if (status !== 'inmigrate') throw unsupported(`it is ${status}; start it with -incoming defer`);
  const migration = await queryMigration(monitor, options);
  if (migration.status === undefined || migration.status === 'none') return;
  const done = isMigrating(migration.status) ? 'is going on' : `has ${migration.status}`;
  throw unsupported(`an incoming migration ${done}; start it anew with -incoming defer`);
}

/**
 * Calls `use` while QEMU has other settings, and gives it its own back, if need be over a new connection. Settings that it does not
 * know are left out.
 */
export async function withSettings<T>(
  owner: GuestOwner,
  guest: WaitingGuest,
  wanted: MigrationSettings,
  options: ExecuteOptions,
  use: () => Promise<T>,
): Promise<T> {
  const own = { capabilities: Object.fromEntries(guest.capabilities), parameters: guest.parameters };
  // A QEMU whose load has failed may be busy with it for long, and is started anew in any case.
  let patience: ExecuteOptions = { timeoutMs: GIVE_BACK_TIMEOUT_MS };
  try {
    await change(owner.link.monitor, own, wanted, options);
    const result = await use();
    patience = {};
    return result;
  } finally {
    // Nothing here may hide why `use` failed, and a QEMU that is gone needs nothing back.
    await owner.insist(() => change(owner.link.monitor, wanted, own, patience)).catch(() => {});
  }
}

/** Gives QEMU what differs between two settings. */
async function change(
  monitor: Monitor,
  from: MigrationSettings,
  to: MigrationSettings,
  options: ExecuteOptions,
): Promise<void> {
  const states = differing(from.capabilities, to.capabilities);
  const capabilities = states.map(([capability, state]) => ({ capability, state }));
  if (states.length > 0) await monitor.execute('migrate-set-capabilities', { capabilities }, options);
  const values = differing(from.parameters, to.parameters);
  const parameters = Object.fromEntries(values);
  if (values.length > 0) await monitor.execute('migrate-set-parameters', parameters, options);
}

/** Of the settings that are in both, those of `to` that are others in `from`. */
function differing<T>(from: Readonly<Record<string, T>>, to: Readonly<Record<string, T>>): [string, T][] {
  return Object.entries(to).filter(([name, value]) => name in from && from[name] !== value);
}

/**
 * Has QEMU load the stream at `uri` and waits for the end of it. QEMU does so once only, whatever comes of it. The guest
 * does not run then, whatever the stream says and even if nobody waits any more: in state inmigrate `stop` is as good as -S
 * (QEMU 2.5, qapi/misc.json).
 *
 * @returns the state that the guest is in then.
 * @throws {MapramError} E_QMP with QEMU's reason.
 */
export async function loadIncoming(monitor: Monitor, uri: string, options: ExecuteOptions): Promise<string> {
  // Whoever has given it a guest meanwhile shall keep it running.
  await requireWaiting(monitor, options);
  await monitor.execute('stop', {}, options);
  await startIncoming(monitor, uri, options);
  let loadedAt: number | undefined;
  for (let pauseMs = 1; ; pauseMs = Math.min(pauseMs * 2, LONGEST_POLL_MS)) {
    // QEMU's main thread loads, and answers no one until it has done so: this wait has no limit of its own.
    const migration = await queryMigration(monitor, { ...options, timeoutMs: 0, mayTakeLong: true });
    const { status } = migration;
    if (status === 'completed') {
      loadedAt ??= performance.now();
      const { status: state } = await queryStatus(monitor, options);
      if (state !== 'inmigrate') return state;
      if (performance.now() - loadedAt > LONGEST_TAKING_UP_MS) throw neverTakenUp();
    }
    if (status === 'failed' || status === 'cancelled') {
      const reason = migration['error-desc'] ?? status;
      throw new MapramError('E_QMP', `QEMU could not load the image, and its log may say more: ${reason}`);
    }
    await delay(pauseMs, undefined, { signal: options.signal }).catch(() => options.signal?.throwIfAborted());
  }
}

function neverTakenUp(): MapramError {
  const seconds = LONGEST_TAKING_UP_MS / 1000;
  const message = `QEMU has loaded the image, but is still in state inmigrate ${seconds} s later`;
  return new MapramError('E_QMP', message);
}

/** Without `exit-on-error` (QEMU 9.1) a failure would end QEMU's process and with it the reason. */
async function startIncoming(monitor: Monitor, uri: string, options: ExecuteOptions): Promise<void> {
  try {
    await monitor.execute('migrate-incoming', { uri, 'exit-on-error': false }, options);
  } catch (error) {
    if (!(error instanceof Error) || !error.message.includes("'exit-on-error'")) throw error;
    await monitor.execute('migrate-incoming', { uri }, options);
  }
}

function unsupported(reason: string): MapramError {
  return new MapramError('E_GUEST_UNSUPPORTED', `This QEMU does not wait for an image: ${reason}`);
}
