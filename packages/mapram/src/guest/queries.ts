import * as v from 'valibot';
import { MapramError } from '../errors.ts';
import type { ExecuteOptions, Monitor } from './monitor.ts';

// The answers of QEMU that we read, checked. Facts are of QEMU 10.0.2, qapi/*.json.

/** Asks QEMU for one thing. */
export type Query<T> = (monitor: Monitor, options?: ExecuteOptions) => Promise<T>;

/** What is needed of `query-migrate`. */
export interface MigrationStatus {
  /** State of the last migration in either direction; undefined if there never was one. */
  status?: string | undefined;
  /** Why the guest cannot be migrated. */
  'blocked-reasons': string[];
  /** Why the last migration failed. */
  'error-desc'?: string | undefined;
}

/** What a QEMU without processors is. */
export const NO_PROCESSORS = 'it has no processors (-machine none has none)';

const StatusSchema = v.object({ status: v.string(), running: v.boolean() });
const MigrationSchema = v.object({
  status: v.optional(v.string()),
  'blocked-reasons': v.optional(v.array(v.string()), []),
  'error-desc': v.optional(v.string()),
});
const CpusSchema = v.array(v.object({ 'thread-id': v.number(), target: v.string() }));
const CommandsSchema = v.array(v.object({ name: v.string() }));
const CapabilitiesSchema = v.array(v.object({ capability: v.string(), state: v.boolean() }));
const PropertiesSchema = v.array(v.object({ name: v.string(), type: v.string() }));
const DeviceDataSchema = v.object({ id: v.optional(v.string()) });
const MemoryDevicesSchema = v.array(v.object({ type: v.string(), data: DeviceDataSchema }));
const JobsSchema = v.array(v.object({ id: v.string(), type: v.string() }));

/** The state that the guest is in: a name of QEMU's RunState enumeration, such as `running` or `prelaunch`. */
export const queryStatus: Query<{ status: string }> = query(StatusSchema, 'query-status');

/** The migration that is going on, or the last one. */
export const queryMigration: Query<MigrationStatus> = query(MigrationSchema, 'query-migrate');

/** QEMU's jobs: of its disks, and snapshots. */
export const queryJobs: Query<{ id: string; type: string }[]> = query(JobsSchema, 'query-jobs');

/** The guest's processors: the thread of each, as QEMU's own pid namespace counts, and its architecture, such as `x86_64`. */
export const queryCpus: Query<{ 'thread-id': number; target: string }[]> = query(
  CpusSchema,
  'query-cpus-fast',
);

/** Hot-pluggable memory devices: the kind of each and, where it has one, its id. */
export const queryMemoryDevices: Query<{ type: string; data: { id?: string | undefined } }[]> = query(
  MemoryDevicesSchema,
  'query-memory-devices',
);

/** The names of the QMP commands that this QEMU has. */
export const queryCommands: Query<Set<string>> = async (monitor, options) => {
  const commands = await ask(monitor, CommandsSchema, 'query-commands', {}, options);
  return new Set(commands.map(({ name }) => name));
};

/** The migration capabilities that this QEMU has, and whether each is on. */
export const queryCapabilities: Query<Map<string, boolean>> = async (monitor, options) => {
  const capabilities = await ask(monitor, CapabilitiesSchema, 'query-migrate-capabilities', {}, options);
  return new Map(capabilities.map(({ capability, state }) => [capability, state]));
};

/** The migration parameters that this QEMU has, with their values. */
export const queryParameters: Query<Record<string, unknown>> = query(
  v.record(v.string(), v.unknown()),
  'query-migrate-parameters',
);

/** The versioned machine type as images record it, such as `pc-q35-10.0`. */
export const queryMachine: Query<string> = async (monitor, options) => {
  const type = await ask(monitor, v.string(), 'qom-get', { path: '/machine', property: 'type' }, options);
  return type.replace(/-machine$/, '');
};

/** The guest's UUID; all zeros if it was given none. */
export const queryUuid: Query<string> = async (monitor, options) =>
  (await ask(monitor, v.object({ UUID: v.string() }), 'query-uuid', {}, options)).UUID;

/** Properties of the object at `path`; children have the type `child<TYPE>`. */
export function listProperties(
  monitor: Monitor,
  path: string,
  options?: ExecuteOptions,
): Promise<{ name: string; type: string }[]> {
  return ask(monitor, PropertiesSchema, 'qom-list', { path }, options);
}

/** A query whose answer is taken as it is. */
function query<T>(schema: v.GenericSchema<unknown, T>, command: string): Query<T> {
  return (monitor, options) => ask(monitor, schema, command, {}, options);
}

/** Runs a command and checks the answer's shape. */
export async function ask<T>(
  monitor: Monitor,
  schema: v.GenericSchema<unknown, T>,
  command: string,
  args: Record<string, unknown>,
  options?: ExecuteOptions,
): Promise<T> {
  const result = v.safeParse(schema, await monitor.execute(command, args, options));
  if (result.success) return result.output;
  const [issue] = result.issues;
  const message = `The answer to the QMP command ${command} is not as expected: ${issue.message}`;
  throw new MapramError('E_QMP', message, { field: v.getDotPath(issue) ?? command });
}
