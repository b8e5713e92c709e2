import { close } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type * as Native from '@mapram/native';
import { addon } from './addon.ts';
import type { Copy } from './choices.ts';
import { asMapramError, type ErrorCode, EXIT_STATUS, MapramError } from './errors.ts';

export type { BlockAddress, DirectAlignment, ImageSource, JobProgress, MetadataPart } from '@mapram/native';

// The one door to the Rust addon: every failure in there leaves here as a MapramError.

/** Memory that a program names itself: a file (by path or by descriptor), or a range of a process. */
export interface NamedMemory {
  /** Name of the RAM block. */
  name: string;
  /** Bytes in the block. */
  length: number;
  /** Path of the file that holds it. */
  file?: string | undefined;
  /** Or a descriptor of that file; it stays the caller's, and must stay open until the job has settled. */
  fd?: number | undefined;
  /** First byte within the file; default 0. */
  offset?: number | undefined;
  /** Or the process that holds it. */
  pid?: number | undefined;
  /** And the address within that process. */
  address?: number | undefined;
}

/** How the engine moves data. */
export interface EngineOptions {
  /** Requests in flight on each thread. */
  queueDepth: number;
  /** Threads that move data. */
  threads: number;
  /** Largest request in bytes, a power of two. */
  chunkBytes: number;
  /** Whether pages go through buffers. */
  copy: Copy;
}

/** What a finished job counted. */
export interface JobResult {
  /** For a save: each block's page bitmap, as the image stores it. */
  bitmaps: Uint8Array[];
  /** For a save: bytes of pages that are not zero. */
  dataBytes: number;
  /** Bytes of the image's page areas that were written or read; for a measurement, that a save would write. */
  transferredBytes: number;
  /** For a save or a restore: bytes of pages that went through a buffer. */
  copiedBytes: number;
  /** For a comparison: a page that differs, if there is one. */
  difference?: Native.Difference | undefined;
}

/** A failure as the addon tells it, thrown or as a job's outcome. */
interface Failure {
  code: string;
  message: string;
  path?: string | undefined;
  offset?: number | undefined;
  cause?: unknown;
}

function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(EXIT_STATUS, code);
}

function toMapramError({ code, message, path, offset, cause }: Failure): MapramError {
  return new MapramError(isErrorCode(code) ? code : 'E_INTERNAL', message, { path, offset, cause });
}

/** Calls into the addon. What it throws on purpose has a code of ours; anything else, such as a panic, is a bug. */
function call<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof Error && 'code' in error && isErrorCode(String(error.code))) {
      throw toMapramError(error as Error & { code: string });
    }
    throw asMapramError(error);
  }
}

/** Asks the addon, which answers from a thread of its own. */
async function answered<T extends { ok: boolean; error?: Native.NativeError }>(
  question: () => Promise<T>,
): Promise<T> {
  const outcome = await call(question);
  if (!outcome.ok) throw toMapramError(outcome.error ?? { code: 'E_INTERNAL', message: 'no answer' });
  return outcome;
}

/** Optional properties of the addon may be absent but not undefined. */
function withoutUndefined<T extends object>(value: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  const entries = Object.entries(value).filter(([, entry]) => entry !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]: Exclude<T[K], undefined> };
}

/** Work of the addon on threads of its own. It begins with {@link Job.run}. */
export class Job {
  readonly #job: Native.Job;
  /** Whether it mostly waits for storage, and not for memory. */
  readonly needsStorage: boolean;

  constructor(job: Native.Job, needsStorage = true) {
    this.#job = job;
    this.needsStorage = needsStorage;
  }

  /** Starts the job and waits for its end. Only once. @throws {MapramError} E_CANCELLED after {@link Job.cancel}. */
  async run(): Promise<JobResult> {
    const outcome = await this.#job.run();
    if (!outcome.ok) throw toMapramError(outcome.error ?? { code: 'E_INTERNAL', message: 'the job failed' });
    const { bitmaps = [], dataBytes = 0, transferredBytes = 0, copiedBytes = 0, difference } = outcome;
    return { bitmaps, dataBytes, transferredBytes, copiedBytes, difference };
  }

  /** Bytes handled and planned so far; cheap enough to poll. */
  progress(): Native.JobProgress {
    return this.#job.progress();
  }

  /** Asks the job to stop; it waits for the requests in flight. */
  cancel(): void {
    this.#job.cancel();
  }
}

/** The RAM blocks of a guest or of a program, opened for reading or writing. */
export class GuestMemory {
  /** The addon's own object, for the functions below. */
  readonly handle: Native.GuestMemory;

  private constructor(handle: Native.GuestMemory) {
    this.handle = handle;
  }

  /** The memory of the guest whose virtual machine monitor is process `pid`. */
  static async ofProcess(
    pid: number,
    blocks: Native.BlockAddress[],
    writable: boolean,
  ): Promise<GuestMemory> {
    return GuestMemory.#open((memory) => memory.openProcess(pid, blocks, writable));
  }

  /** Memory that the caller names itself. */
  static async ofNamed(blocks: readonly NamedMemory[], writable: boolean): Promise<GuestMemory> {
    return GuestMemory.#open((memory) => memory.openNamed(blocks.map(withoutUndefined), writable));
  }

  static async #open(
    question: (memory: Native.GuestMemory) => Promise<Native.HostOutcome>,
  ): Promise<GuestMemory> {
    const memory = call(() => new (addon().GuestMemory)());
    await answered(() => question(memory));
    return new GuestMemory(memory);
  }

  /** What kind of memory each part of a block is in. */
  regions(): Native.RegionInfo[] {
    return this.handle.regions();
  }

  /** Gives up its files; to be called when no job needs them any more. */
  close(): void {
    this.handle.close();
  }

  /** For each block the extents that may hold data, three numbers each: offset in the block, length, source. */
  async scan(): Promise<Float64Array[]> {
    return (await answered(() => this.handle.scan())).extents ?? [];
  }
}

/** An image that is being written: a partial file until it is published, gone once it is discarded; or a block device. */
export class ImageFile {
  /** Bytes of the block device that the image goes to; undefined for a file. */
  readonly deviceBytes: number | undefined;
  /** What direct I/O needs there. */
  readonly alignment: Native.DirectAlignment | undefined;
  readonly #file: Native.ImageFile;

  private constructor(file: Native.ImageFile, { deviceBytes, direct }: Native.CreateOutcome) {
    this.#file = file;
    this.deviceBytes = deviceBytes;
    this.alignment = direct;
  }

  /** Creates and locks the partial file beside `path`, or opens the block device at `path`. */
  static async create(path: string, force: boolean, direct: boolean, engine: string): Promise<ImageFile> {
    const file = call(() => new (addon().ImageFile)());
    return new ImageFile(file, await answered(() => file.create(path, force, direct, engine)));
  }

  /** A job that makes the buffers for a save of about `dataBytes`, so that it need not once the guest stands still. */
  prepare(dataBytes: number, how: EngineOptions): Job {
    return new Job(
      call(() => this.#file.prepare(dataBytes, how)),
      false,
    );
  }

  /** A job that writes the planned ranges and results in the bitmaps. */
  save(memory: GuestMemory, areas: Native.PageArea[], plan: Native.TransferPlan, how: EngineOptions): Job {
    return new Job(call(() => this.#file.save(memory.handle, areas, plan, how)));
  }

  /** A job that writes everything but pages, sets the file's length and makes all of it durable. */
  finish(parts: Native.MetadataPart[], length: number): Job {
    return new Job(call(() => this.#file.finish(parts, length)));
  }

  /** A job that gives the finished file its name. */
  publish(): Job {
    return new Job(call(() => this.#file.publish()));
  }

  /** Whether the image has its name, or may have it, which may be so though publishing has failed. */
  isPublished(): boolean {
    return this.#file.isPublished();
  }

  /** A job that removes the partial file unless it was published; no other job may be running on the file. */
  discard(): Job {
    return new Job(call(() => this.#file.discard()));
  }
}

/** A job that makes pages with clear bits read zero and then puts the image's pages in place. */
export function restoreMemory(
  image: Native.ImageSource,
  memory: GuestMemory,
  plan: Native.TransferPlan,
  engine: string,
  how: EngineOptions,
): Job {
  return new Job(call(() => addon().restore(image, memory.handle, plan, engine, how)));
}

/** A job that compares the memory that is mapped for reading only with the image, and results in a page that differs. */
export function compareMemory(
  image: Native.ImageSource,
  memory: GuestMemory,
  engine: string,
  how: EngineOptions,
): Job {
  return new Job(call(() => addon().compare(image, memory.handle, engine, how)));
}

/** A job that reads what is planned and counts the bytes that a save would write. */
export function measureMemory(memory: GuestMemory, plan: Native.TransferPlan, how: EngineOptions): Job {
  return new Job(
    call(() => addon().measure(memory.handle, plan, how)),
    false,
  );
}

/** A job that fails with E_NO_SPACE if a tmpfs or the huge pages of the memory cannot take the pages that the bitmaps mark. */
export function requireRoom(memory: GuestMemory, bitmaps: Uint8Array[]): Job {
  return new Job(
    call(() => addon().requireRoom(memory.handle, bitmaps)),
    false,
  );
}

/** A job that makes every page with a clear bit read zero. */
export function clearMemory(memory: GuestMemory, bitmaps: Uint8Array[], threads: number): Job {
  return new Job(
    call(() => addon().clear(memory.handle, bitmaps, threads)),
    false,
  );
}

/** A connected Unix stream socket that can pass file descriptors. */
export class UnixConnection {
  readonly #connection: Native.UnixConnection;

  private constructor(connection: Native.UnixConnection) {
    this.#connection = connection;
  }

  /** Connects to the socket at `path`, or to the abstract name behind a NUL. */
  static connect(path: string): UnixConnection {
    return new UnixConnection(call(() => addon().UnixConnection.connect(path)));
  }

  /** The descriptor for `new net.Socket({ fd })`, which owns it from then on. */
  takeFd(): number {
    return call(() => this.#connection.takeFd());
  }

  /** The process that listens on the other end: a hint only. 0 if it is in none of our pid namespaces. */
  peerPid(): number {
    return call(() => this.#connection.peerPid());
  }

  /** Sends a whole line along with descriptors, at once or not at all; nothing else may be queued on the socket. */
  sendWithFds(line: Uint8Array, fds: readonly number[]): void {
    call(() => this.#connection.sendWithFds(line, [...fds]));
  }

  /** Closes the duplicate that sends descriptors; the taken one is not touched. */
  close(): void {
    this.#connection.close();
  }
}

/** A process that stays known whatever becomes of its number; asking for its end takes no descriptor. */
export class ProcessHandle {
  readonly #process: Native.ProcessHandle;

  private constructor(process: Native.ProcessHandle) {
    this.#process = process;
  }

  /** The process `pid`; undefined for 0, as the kernel calls those of other pid namespaces, or if it cannot be held. */
  static tryOpen(pid: number): ProcessHandle | undefined {
    try {
      return pid === 0 ? undefined : ProcessHandle.open(pid);
    } catch {
      return undefined;
    }
  }

  /** The process that has the number `pid` now. @throws {MapramError} E_GUEST_GONE, E_HOST_UNSUPPORTED without a descriptor. */
  static open(pid: number): ProcessHandle {
    return new ProcessHandle(call(() => addon().ProcessHandle.open(pid)));
  }

  /**
   * Keeps every other job of mapram's on this host from the process, until this is closed.
   *
   * @throws {MapramError} E_TARGET_BUSY if one is at work on it.
   */
  lock(): void {
    call(() => this.#process.lock());
  }

  /** Whether it has ended; one that nobody has waited for yet has. */
  hasEnded(): boolean {
    return this.#process.hasEnded();
  }

  /** Waits for its end, at most that long, and says whether it has ended. */
  async endsWithin(timeoutMs: number): Promise<boolean> {
    const deadline = performance.now() + timeoutMs;
    while (!this.hasEnded()) {
      if (performance.now() >= deadline) return false;
      await delay(10);
    }
    return true;
  }

  /** Closes the descriptor; nothing is known of the process then. */
  close(): void {
    this.#process.close();
  }
}

/** A new anonymous file in memory; the caller closes the descriptor. */
export function createMemfd(name: string): number {
  return call(() => addon().createMemfd(name));
}

/** Closes a descriptor. What close(2) has to say comes too late to change what was done, so it is not heard. */
export function closeFd(fd: number): void {
  // Off Node's thread: a file system that hangs may keep it.
  close(fd, () => {});
}

/**
 * Opens anew, for reading, the file that `fd` leads to, for direct I/O if `direct`; the caller closes the descriptor.
 *
 * @param path the file's name, for messages.
 */
export async function reopenForReading(fd: number, path: string, direct: boolean): Promise<number> {
  return (await answered(() => addon().reopenForReading(fd, path, direct))).fd as number;
}

/** Bytes in the file or the block device that `fd` leads to. */
export async function lengthInBytes(fd: number): Promise<number> {
  return (await answered(() => addon().lengthInBytes(fd))).bytes as number;
}

/**
 * Bytes that can still be written to the file system of `directory`; without end where it does not say.
 *
 * @param settle whether the file system shall first finish what it put off, as XFS does when it frees removed files.
 */
export async function freeBytes(directory: string, settle = false): Promise<number> {
  return (await answered(() => addon().freeBytes(directory, settle))).bytes ?? Number.POSITIVE_INFINITY;
}

/** Why mapram does not work on this host at all, if something is known to be in the way. */
export function hostProblem(): MapramError | undefined {
  const failure = addon().hostProblem();
  return failure === null ? undefined : toMapramError(failure);
}

/** Longest run of zero pages between data that a save writes along with its neighbours. */
export function joinedZeroPages(): number {
  return addon().joinedZeroPages();
}

/** The I/O engines that can be chosen by name. */
export function engineNames(): string[] {
  return addon().engineNames();
}

/** How much an engine will have to do; its rings and threads are tried with as many. */
export interface EngineLoad {
  /** Requests in flight on each thread. */
  queueDepth: number;
  /** Threads. */
  threads: number;
}

/** Why an engine does not work on this host, or undefined if it does. */
export async function probeEngine(
  name: string,
  { queueDepth, threads }: EngineLoad,
): Promise<MapramError | undefined> {
  const { error } = await call(() => addon().probeEngine(name, queueDepth, threads));
  return error === undefined ? undefined : toMapramError(error);
}

/** The engine that `auto` stands for on this host. */
export async function autoEngine({ queueDepth, threads }: EngineLoad): Promise<string> {
  return (await answered(() => addon().autoEngine(queueDepth, threads))).engine as string;
}
