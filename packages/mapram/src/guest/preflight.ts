import { MapramError } from '../errors.ts';
import type { GuestLink } from './link.ts';
import type { ExecuteOptions, Monitor } from './monitor.ts';
import {
  listProperties,
  NO_PROCESSORS,
  queryCommands,
  queryCpus,
  queryMemoryDevices,
  queryMigration,
  queryStatus,
} from './queries.ts';

/** Commands without which a guest cannot be saved from outside. */
const SAVE_COMMANDS = [
  'x-query-ramblock',
  'xen-save-devices-state',
  'query-cpus-fast',
  'qom-list',
  'stop',
  'cont',
];
/** The image format is laid out here for pages of 4 KiB and no configuration but the machine's name, as on x86. */
const TARGETS: ReadonlySet<string> = new Set(['x86_64', 'i386']);
/** States of `query-migrate` in which nothing is going on any more, or yet. */
const SETTLED: ReadonlySet<string> = new Set(['none', 'completed', 'failed', 'cancelled']);
/** States in which another operation owns the guest, with the reason why it cannot be saved. */
const UNSAVABLE: Readonly<Record<string, string>> = {
  inmigrate: 'it waits for an incoming migration, so there is nothing to save yet',
  'finish-migrate': 'it is being migrated',
  'save-vm': 'its state is being saved by someone else',
  'restore-vm': 'its state is being restored',
  colo: 'it is replicated by COLO',
  preconfig: 'its machine does not exist yet',
};

/**
 * Why this guest cannot be saved, each reason one sentence; none if it can. Nothing of the guest is changed.
 *
 * @throws {MapramError} E_QMP or E_GUEST_GONE if QEMU does not answer.
 */
export async function findSaveObstacles({ monitor, options, handover }: GuestLink): Promise<string[]> {
  const commands = await queryCommands(monitor, options);
  const missing = [...SAVE_COMMANDS, ...handover.commands].filter((command) => !commands.has(command));
  if (missing.length > 0) return [`this QEMU has no QMP command ${missing.join(', ')}`];
  return [
    ...(await findStateObstacles(monitor, options)),
    ...(await findMigrationObstacles(monitor, options)),
    ...(await findMachineObstacles(monitor, options)),
    ...(await findDeviceObstacles(monitor, options)),
  ];
}

/** @throws {MapramError} E_GUEST_UNSUPPORTED naming everything that keeps the guest from being saved. */
export async function requireSavable(link: GuestLink): Promise<void> {
  const obstacles = await findSaveObstacles(link);
  if (obstacles.length > 0) {
    throw new MapramError('E_GUEST_UNSUPPORTED', `The guest cannot be saved: ${obstacles.join('; ')}`);
  }
}

/** Whether a migration in the state `status` of `query-migrate` is still going on. */
export function isMigrating(status: string | undefined): boolean {
  return status !== undefined && !SETTLED.has(status);
}

async function findStateObstacles(monitor: Monitor, options?: ExecuteOptions): Promise<string[]> {
  const reason = UNSAVABLE[(await queryStatus(monitor, options)).status];
  return reason === undefined ? [] : [reason];
}

async function findMigrationObstacles(monitor: Monitor, options?: ExecuteOptions): Promise<string[]> {
  const { status, 'blocked-reasons': reasons } = await queryMigration(monitor, options);
  // xen-save-devices-state itself looks at neither.
  const active = isMigrating(status) ? [`another migration is going on (${status})`] : [];
  return [...active, ...reasons.map((reason) => `QEMU says that it cannot be migrated: ${reason}`)];
}

async function findMachineObstacles(monitor: Monitor, options?: ExecuteOptions): Promise<string[]> {
  const targets = new Set((await queryCpus(monitor, options)).map((cpu) => cpu.target));
  if (targets.size === 0) return [NO_PROCESSORS];
  const foreign = [...targets].filter((target) => !TARGETS.has(target));
  const obstacles = foreign.map((target) => `its architecture ${target} is not supported`);
  const encryption = await confidentialSupport(monitor, options);
  if (encryption !== '') obstacles.push(`its memory is encrypted (${encryption})`);
  return obstacles;
}

/** Path of the object that encrypts the guest's memory (SEV, TDX); empty if none does, or if this QEMU knows none. */
async function confidentialSupport(monitor: Monitor, options?: ExecuteOptions): Promise<string> {
  const properties = await listProperties(monitor, '/machine', options);
  const property = 'confidential-guest-support';
  if (!properties.some(({ name }) => name === property)) return '';
  return String(await monitor.execute('qom-get', { path: '/machine', property }, options));
}

/**
 * Devices whose state is not in the device sections alone: vfio sends part of it while the guest runs, and that of virtio-mem must
 * stand in front of the RAM.
 */
async function findDeviceObstacles(monitor: Monitor, options?: ExecuteOptions): Promise<string[]> {
  const devices: string[] = [];
  for (const path of ['/machine/peripheral', '/machine/peripheral-anon', '/machine/unattached']) {
    for (const { name, type } of await listProperties(monitor, path, options)) {
      const kind = /^child<(vfio-.*|virtio-mem.*)>$/.exec(type)?.[1];
      if (kind !== undefined) devices.push(`device ${name} is a ${kind}`);
    }
  }
  if (devices.length === 0) {
    for (const { type, data } of await queryMemoryDevices(monitor, options)) {
      if (type === 'virtio-mem') devices.push(`memory device ${data.id ?? 'without an id'} is a ${type}`);
    }
  }
  return devices.map((device) => `${device}, which cannot be saved from outside`);
}
