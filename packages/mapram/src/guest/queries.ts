import * as v from 'valibot';
import { MapramError } from '../errors.ts';
import type { ExecuteOptions, Monitor } from './monitor.ts';

// The answers of QEMU that we read, checked. Facts are of QEMU 10.0.2, qapi/*.json.

/** What `query-status` says. */
export interface GuestStatus {
  /** A name of QEMU's RunState enumeration, such as `running` or `prelaunch`. */
  status: string;
  /** Whether its processors run. */
  running: boolean;
}

/** What `query-migrate` says. */
export interface MigrationStatus {
  /** State of the last migration in either direction; undefined if there never was one. */
  status: string | undefined;
  /** Why the guest cannot be migrated. */
  blockedReasons: string[];
  /** Why the last migration failed. */
  errorDescription: string | undefined;
}

/** What a QEMU without processors is. */
export const NO_PROCESSORS = 'it has no processors (-machine none has none)';

/** What is needed of `query-cpus-fast`. */
export interface GuestCpu {
  /** Thread of the processor, as QEMU's own pid namespace counts. */
  threadId: number;
  /** Emulated architecture, such as `x86_64`. */
  target: string;
}

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
const MemoryDevicesSchema = v.array(
  v.object({ type: v.string(), data: v.object({ id: v.optional(v.string()) }) }),
);
const JobsSchema = v.array(v.object({ id: v.string(), type: v.string() }));
const RamBlockSchema = v.object({ 'human-readable-text': v.string() });

/** The state that the guest is in. */
export async function queryStatus(monitor: Monitor, options?: ExecuteOptions): Promise<GuestStatus> {
  return ask(monitor, StatusSchema, 'query-status', {}, options);
}

/** The migration that is going on, or the last one. */
export async function queryMigration(monitor: Monitor, options?: ExecuteOptions): Promise<MigrationStatus> {
  const answer = await ask(monitor, MigrationSchema, 'query-migrate', {}, options);
  return {
    status: answer.status,
    blockedReasons: answer['blocked-reasons'],
    errorDescription: answer['error-desc'],
  };
}

/** QEMU's jobs: of its disks, and snapshots. */
export async function queryJobs(
  monitor: Monitor,
  options?: ExecuteOptions,
): Promise<{ id: string; type: string }[]> {
  return ask(monitor, JobsSchema, 'query-jobs', {}, options);
}

/** The guest's processors. */
export async function queryCpus(monitor: Monitor, options?: ExecuteOptions): Promise<GuestCpu[]> {
  const cpus = await ask(monitor, CpusSchema, 'query-cpus-fast', {}, options);
  return cpus.map((cpu) => ({ threadId: cpu['thread-id'], target: cpu.target }));
}

/** The names of the QMP commands that this QEMU has. */
export async function queryCommands(monitor: Monitor, options?: ExecuteOptions): Promise<Set<string>> {
  const commands = await ask(monitor, CommandsSchema, 'query-commands', {}, options);
  return new Set(commands.map(({ name }) => name));
}

/** The migration capabilities that this QEMU has, and whether each is on. */
export async function queryCapabilities(
  monitor: Monitor,
  options?: ExecuteOptions,
): Promise<Map<string, boolean>> {
  const capabilities = await ask(monitor, CapabilitiesSchema, 'query-migrate-capabilities', {}, options);
  return new Map(capabilities.map(({ capability, state }) => [capability, state]));
}

/** The migration parameters that this QEMU has, with their values. */
export async function queryParameters(
  monitor: Monitor,
  options?: ExecuteOptions,
): Promise<Record<string, unknown>> {
  return ask(monitor, v.record(v.string(), v.unknown()), 'query-migrate-parameters', {}, options);
}

/** The versioned machine type as images record it, such as `pc-q35-10.0`. */
export async function queryMachine(monitor: Monitor, options?: ExecuteOptions): Promise<string> {
  const args = { path: '/machine', property: 'type' };
  const type = await ask(monitor, v.string(), 'qom-get', args, options);
  return type.replace(/-machine$/, '');
}

/** The guest's UUID; all zeros if it was given none. */
export async function queryUuid(monitor: Monitor, options?: ExecuteOptions): Promise<string> {
  return (await ask(monitor, v.object({ UUID: v.string() }), 'query-uuid', {}, options)).UUID;
}

/** The text of `x-query-ramblock`. */
export async function queryRamBlockText(monitor: Monitor, options?: ExecuteOptions): Promise<string> {
  const answer = await ask(monitor, RamBlockSchema, 'x-query-ramblock', {}, options);
  return answer['human-readable-text'];
}

/** Properties of the object at `path`, each with its type; children have the type `child<TYPE>`. */
export async function listProperties(
  monitor: Monitor,
  path: string,
  options?: ExecuteOptions,
): Promise<{ name: string; type: string }[]> {
  return ask(monitor, PropertiesSchema, 'qom-list', { path }, options);
}

/** Hot-pluggable memory devices: their kinds and, where they have one, their ids. */
export async function queryMemoryDevices(
  monitor: Monitor,
  options?: ExecuteOptions,
): Promise<{ type: string; id: string | undefined }[]> {
  const devices = await ask(monitor, MemoryDevicesSchema, 'query-memory-devices', {}, options);
  return devices.map(({ type, data }) => ({ type, id: data.id }));
}

/** Runs a command and checks the answer's shape. */
export async function ask<TSchema extends v.GenericSchema>(
  monitor: Monitor,
  schema: TSchema,
  command: string,
  args: Record<string, unknown>,
  options?: ExecuteOptions,
): Promise<v.InferOutput<TSchema>> {
  const result = v.safeParse(schema, await monitor.execute(command, args, options));
  if (result.success) return result.output;
  const issue = result.issues[0];
  throw new MapramError(
    'E_QMP',
    `The answer to the QMP command ${command} is not as expected: ${issue.message}`,
    {
      field: v.getDotPath(issue) ?? command,
    },
  );
}
