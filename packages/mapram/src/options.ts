import { availableParallelism } from 'node:os';
import * as v from 'valibot';
import { COPIES, type Copy, ENGINES, type Engine } from './choices.ts';
import { MapramError } from './errors.ts';
import type { Guest } from './guest/link.ts';
import type { Monitor } from './guest/monitor.ts';
import { chooseEngine, type EngineOptions, type NamedMemory } from './native.ts';
import { MAX_CHANNELS } from './plan/index.ts';

/** How pages are moved. */
export interface TransferOptions {
  /** Path of the image. */
  image: string;
  /** Parallel streams of the image, 1 to 128. @default 8 */
  channels?: number | undefined;
  /** Requests in flight on each thread, 1 to 256. @default 4 */
  queueDepth?: number | undefined;
  /** A named engine never falls back to another one. @default 'auto' */
  engine?: Engine | undefined;
  /** Whether the image is accessed by direct I/O, past the page cache. @default true */
  direct?: boolean | undefined;
  /**
   * Whether pages go through buffers: `auto` does what is faster; `never` copies only what cannot be mapped, as private memory.
   * @default 'auto'
   */
  copy?: Copy | undefined;
  /** Cancels: I/O in flight drains, the file is discarded, the guest is put back, and the promise rejects with its reason. */
  signal?: AbortSignal | undefined;
}

interface SaveCommon extends TransferOptions {
  /** Whether an image that exists is replaced. @default false */
  force?: boolean | undefined;
}

/** Options to save a guest. */
export interface GuestSaveOptions extends SaveCommon {
  /** The guest. */
  guest: Guest;
  /** What it does after success. @default 'pause' */
  then?: 'pause' | 'resume' | 'quit' | undefined;
}

/** A block of memory that is not QEMU's: a file by path or descriptor, or a range of a process. */
export interface MemoryBlock extends NamedMemory {
  /** Page size of the memory behind it; only said, for it is found out. */
  pageSize?: number | undefined;
}

/** Options to save memory that is not QEMU's. It must not change while it is saved. */
export interface MemorySaveOptions extends SaveCommon {
  /** The blocks, in the order in which the image shall hold them. */
  memory: readonly MemoryBlock[];
  /** The machine type that the image shall name. */
  machine: string;
  /** Device sections of the migration stream, ending in EOF; by default none. @default EOF alone */
  deviceState?: Uint8Array | undefined;
}

/** Options of save. */
export type SaveOptions = GuestSaveOptions | MemorySaveOptions;

interface RestoreCommon extends TransferOptions {
  /** Where the image begins in its file, in bytes. @default 0 */
  offset?: number | undefined;
}

/** Options to restore a guest. */
export interface GuestRestoreOptions extends RestoreCommon {
  /** A QEMU that was started with `-incoming defer`. */
  guest: Guest;
  /** What the guest does after success; by default what it did when it was saved. */
  then?: 'pause' | 'resume' | undefined;
  /** `fill` puts the pages into QEMU's memory from outside, `qemu` lets QEMU load them. @default 'auto' */
  method?: 'auto' | 'fill' | 'qemu' | undefined;
}

/** Options to restore memory that is not QEMU's. */
export interface MemoryRestoreOptions extends RestoreCommon {
  /** The blocks; names and lengths must be those of the image. */
  memory: readonly MemoryBlock[];
  /** The machine type that the image must name; not compared if absent. */
  machine?: string | undefined;
}

/** Options of restore. */
export type RestoreOptions = GuestRestoreOptions | MemoryRestoreOptions;

/** The smallest device state: no section at all, then EOF. */
const NO_DEVICES: Uint8Array = Uint8Array.of(0);
/** What most disks take best in one request (docs/performance.md). */
const CHUNK_BYTES: number = 4 * 1024 * 1024;
/** More threads than this do not make a disk faster. */
const MAX_THREADS = 8;
const DEFAULT_CHANNELS = 8;
/** Enough to keep a disk busy, and few enough that what one request leaves in the processor's cache is there for the next. */
const DEFAULT_QUEUE_DEPTH = 4;

/** What a transfer with the default options asks of its engine. */
export const DEFAULT_LOAD: EngineOptions = {
  chunkBytes: CHUNK_BYTES,
  copy: 'auto',
  queueDepth: DEFAULT_QUEUE_DEPTH,
  threads: threadsFor(DEFAULT_CHANNELS, availableParallelism()),
};

const Text = v.pipe(v.string('it is no text'), v.minLength(1, 'it is empty'));
/** Half of a surrogate pair, or what Node puts in the place of bytes that are no UTF-8. */
const NO_UTF8 = /\p{Surrogate}|\uFFFD/u;
// A name that is no UTF-8 reaches us changed, and so would be that of another file.
const Path = v.pipe(
  Text,
  v.excludes('\0', 'it holds a NUL character'),
  v.check((path) => !NO_UTF8.test(path), 'it is not UTF-8, and other names cannot be used'),
);
const Whole = (min: number, max: number, message: string) =>
  v.pipe(v.number(message), v.integer(message), v.minValue(min, message), v.maxValue(max, message));
const Count = (max: number) => Whole(1, max, `it is no whole number from 1 to ${max}`);
const Bytes = Whole(0, Number.MAX_SAFE_INTEGER, 'it is no whole number of bytes');
const SomeBytes = Whole(1, Number.MAX_SAFE_INTEGER, 'it is no whole number of bytes above 0');
// What the kernel takes; the addon would cut anything larger to the number of something else.
const INT_MAX = 2 ** 31 - 1;
const Pid = Whole(1, INT_MAX, 'it is no process number');
const Fd = Whole(0, INT_MAX, 'it is no file descriptor');
const Flag = v.boolean('it is neither true nor false');
const OneOf = <const T extends readonly string[]>(words: T) =>
  v.picklist(words, `it is none of ${words.join(', ')}`);

const transferEntries = {
  image: Path,
  channels: v.optional(Count(MAX_CHANNELS), DEFAULT_CHANNELS),
  queueDepth: v.optional(Count(256), DEFAULT_QUEUE_DEPTH),
  engine: v.optional(OneOf(ENGINES), 'auto'),
  direct: v.optional(Flag, true),
  copy: v.optional(OneOf(COPIES), 'auto'),
  signal: v.optional(v.instance(AbortSignal, 'it is no AbortSignal')),
};

// Only looked at: it stays the caller's own object, which may be of any kind that has these.
const MonitorSchema = v.custom<Monitor>((value) => {
  const { execute, events, pid } = (value ?? {}) as Partial<Monitor>;
  const methods: unknown[] = [execute, events?.on, events?.off];
  return methods.every((method) => typeof method === 'function') && v.is(v.optional(Pid), pid);
}, 'a monitor has execute(), events with on() and off(), and perhaps the number pid');

// QEMU cuts a file URI at this text.
const ScratchFile = v.pipe(
  Path,
  v.excludes(',offset=', 'it holds ",offset="'),
  v.startsWith('/', 'it is no absolute path'),
);

const GuestSchema = v.union(
  [
    v.strictObject({ qmp: Path, pid: v.optional(Pid) }),
    v.strictObject({ monitor: MonitorSchema, scratchFile: v.optional(ScratchFile) }),
  ],
  'a guest is { qmp, pid? } or { monitor, scratchFile? }',
);

const MemorySchema = v.pipe(
  v.array(
    v.pipe(
      v.strictObject({
        name: Text,
        length: SomeBytes,
        pageSize: v.optional(SomeBytes),
        file: v.optional(Path),
        fd: v.optional(Fd),
        offset: v.optional(Bytes),
        pid: v.optional(Pid),
        address: v.optional(Bytes),
      }),
      v.check(hasOneSource, 'a block is in a file, in an fd, or at an address of a pid'),
    ),
    'it is no list of blocks',
  ),
  v.minLength(1, 'it is empty'),
);

const saveEntries = { ...transferEntries, force: v.optional(Flag, false) };
const GuestSaveSchema = v.strictObject({
  ...saveEntries,
  guest: GuestSchema,
  then: v.optional(OneOf(['pause', 'resume', 'quit']), 'pause'),
});
const MemorySaveSchema = v.strictObject({
  ...saveEntries,
  memory: MemorySchema,
  machine: Text,
  deviceState: v.optional(
    v.custom<Uint8Array>((value) => value instanceof Uint8Array, 'it is no Uint8Array'),
    NO_DEVICES,
  ),
});

const restoreEntries = { ...transferEntries, offset: v.optional(Bytes, 0) };
const GuestRestoreSchema = v.strictObject({
  ...restoreEntries,
  guest: GuestSchema,
  then: v.optional(OneOf(['pause', 'resume'])),
  method: v.optional(OneOf(['auto', 'fill', 'qemu']), 'auto'),
});
const MemoryRestoreSchema = v.strictObject({
  ...restoreEntries,
  memory: MemorySchema,
  machine: v.optional(Text),
});

type Filled<T, Defaulted extends keyof T> = Omit<T, Defaulted> & {
  [K in Defaulted]-?: Exclude<T[K], undefined>;
};
type TransferDefaults = 'channels' | 'queueDepth' | 'engine' | 'direct' | 'copy';

/** Options of {@link GuestSaveOptions} with every default filled in. */
export type GuestSave = Filled<GuestSaveOptions, TransferDefaults | 'force' | 'then'>;
/** Options of {@link MemorySaveOptions} with every default filled in. */
export type MemorySave = Filled<MemorySaveOptions, TransferDefaults | 'force' | 'deviceState'>;
/** Options of {@link GuestRestoreOptions} with every default filled in. */
export type GuestRestore = Filled<GuestRestoreOptions, TransferDefaults | 'offset' | 'method'>;
/** Options of {@link MemoryRestoreOptions} with every default filled in. */
export type MemoryRestore = Filled<MemoryRestoreOptions, TransferDefaults | 'offset'>;

/** @throws {MapramError} E_USAGE naming the option. */
export function checkSaveOptions(options: SaveOptions): GuestSave | MemorySave {
  return namesMemory(options) ? check(MemorySaveSchema, options) : check(GuestSaveSchema, options);
}

/** @throws {MapramError} E_USAGE naming the option. */
export function checkRestoreOptions(options: RestoreOptions): GuestRestore | MemoryRestore {
  return namesMemory(options) ? check(MemoryRestoreSchema, options) : check(GuestRestoreSchema, options);
}

/** @throws {MapramError} E_USAGE if there can be no file of that name; `whole` and `name` tell whose it is. */
export function checkPath(path: string, whole: string, name: string): void {
  check(Path, path, whole, name);
}

/** @throws {MapramError} E_USAGE naming the option. */
export function checkInspectOptions(options: { offset?: number | undefined }): void {
  check(v.strictObject({ offset: v.optional(Bytes) }), options);
}

/** How a transfer is to be done, with the engine chosen. */
export interface Transfer extends EngineOptions, Pick<GuestSave, 'channels' | 'direct'> {
  /** Name of the I/O engine. */
  engine: string;
  /** Threads where the kernel has to find pages for what is written to memory. */
  threadsForFreshMemory: number;
}

/** @throws {MapramError} E_HOST_UNSUPPORTED if the engine that was asked for does not work here. */
export async function chooseTransfer(options: Pick<GuestSave, TransferDefaults>): Promise<Transfer> {
  const { channels, queueDepth, direct, copy } = options;
  const processors = availableParallelism();
  // The other half is for the kernel, which carries out what these ask for.
  const threads = threadsFor(channels, Math.ceil(processors / 2));
  const threadsForFreshMemory = threadsFor(channels, processors);
  const chunkBytes = CHUNK_BYTES;
  const load = { queueDepth, copy, chunkBytes, threads: threadsForFreshMemory };
  const engine = await chooseEngine(options.engine, load);
  return { channels, queueDepth, direct, copy, engine, threads, threadsForFreshMemory, chunkBytes };
}

function threadsFor(channels: number, processors: number): number {
  return Math.min(channels, processors, MAX_THREADS);
}

function hasOneSource({ file, fd, offset, pid, address }: NamedMemory): boolean {
  const isInFile = file !== undefined || fd !== undefined || offset !== undefined;
  if (isInFile)
    return (file === undefined) !== (fd === undefined) && pid === undefined && address === undefined;
  return pid !== undefined && address !== undefined;
}

/** Programs without types may give anything. */
function namesMemory(options: unknown): boolean {
  return typeof options === 'object' && options !== null && 'memory' in options;
}

/**
 * @param whole how a message calls the value itself.
 * @param name the field that the value itself is in, if it is in one.
 */
function check<TSchema extends v.GenericSchema>(
  schema: TSchema,
  value: unknown,
  whole = 'The options are',
  name?: string,
): v.InferOutput<TSchema> {
  const result = v.safeParse(schema, value, { message: describeShape });
  if (result.success) return result.output;
  const issue = result.issues[0];
  const option = v.getDotPath(issue);
  const subject = option === null ? whole : `Option ${option} is`;
  throw new MapramError('E_USAGE', `${subject} not right: ${issue.message}`, { field: option ?? name });
}

/** What is wrong with an object of options itself; everything else has a message of its own in the schemas above. */
function describeShape(issue: v.BaseIssue<unknown>): string {
  if (issue.expected === 'never') return 'there is no such option';
  return issue.received === 'undefined' ? 'it is missing' : 'it is no object of options';
}
