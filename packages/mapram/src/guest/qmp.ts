import { EventEmitter } from 'node:events';
import { Socket } from 'node:net';
import { MapramError } from '../errors.ts';
import { UnixConnection } from '../native.ts';
import { LineSplitter } from './line-splitter.ts';
import type { ExecuteOptions, Monitor } from './monitor.ts';

/** QEMU greets at once unless another client holds the socket. */
const GREETING_TIMEOUT_MS = 5_000;
/** QEMU answers at once unless its main thread is busy; what waits for the guest's disks has a limit of its own. */
const COMMAND_TIMEOUT_MS = 60_000;

/** What {@link QmpClient.connect} takes. */
export interface ConnectOptions {
  /** Longest wait for QEMU's greeting in milliseconds; default 5000. */
  timeoutMs?: number | undefined;
  /** Gives up connecting. */
  signal?: AbortSignal | undefined;
}

/** A command whose answer has not come yet. */
interface Pending {
  command: string;
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

type Message = Record<string, unknown>;

/**
 * A QMP connection over a Unix socket.
 *
 * Commands wait for each other: libuv leaves part of a line in its queue while the socket's buffer is full, and descriptors
 * sent past that queue would break the line apart. So there is one command at a time, and nothing is queued when it is sent.
 */
export class QmpClient implements Monitor {
  /** Emits each event of QEMU under its own name. */
  readonly events: EventEmitter = new EventEmitter();
  readonly #path: string;
  readonly #connection: UnixConnection;
  readonly #socket: Socket;
  readonly #splitter = new LineSplitter();
  readonly #pending = new Map<number, Pending>();
  readonly #greeted: PromiseWithResolvers;
  #lastId = 0;
  /** Settles when no command is on its way. */
  #idle: Promise<unknown> = Promise.resolve();
  /** Why nothing more can be sent, once that is so. */
  #ended: MapramError | undefined;

  private constructor(path: string, connection: UnixConnection) {
    this.#path = path;
    this.#connection = connection;
    this.#greeted = promiseWithResolvers();
    this.#socket = new Socket({ fd: connection.takeFd(), readable: true, writable: true });
    this.#socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    this.#socket.on('error', (cause) => this.#end(closedError(path, cause)));
    this.#socket.on('close', () => this.#end(closedError(path)));
  }

  /**
   * Connects to the QMP socket at `path` and leaves the negotiation mode.
   *
   * @throws {MapramError} E_NOT_FOUND, E_PERMISSION, or E_QMP: nobody listens, another client is connected, or it is no QMP
   *   socket; or the signal's reason.
   */
  static async connect(path: string, options: ConnectOptions = {}): Promise<QmpClient> {
    const { timeoutMs = GREETING_TIMEOUT_MS, signal } = options;
    signal?.throwIfAborted();
    const client = new QmpClient(path, UnixConnection.connect(path));
    const busy = new MapramError(
      'E_QMP',
      `No greeting came from the QMP socket within ${timeoutMs / 1000} s. QEMU serves one client a socket: another client is connected`,
      { path },
    );
    try {
      await within(client.#greeted.promise, { timeoutMs, error: busy, signal });
      await client.execute('qmp_capabilities', {}, { signal, timeoutMs });
      return client;
    } catch (error) {
      client.close();
      throw error;
    }
  }

  /**
   * Runs a command and resolves with what it returns.
   *
   * @throws {MapramError} E_QMP if QEMU refuses it or does not answer in time, E_GUEST_GONE if the connection closes; or the
   *   signal's reason.
   */
  async execute(
    command: string,
    args: Record<string, unknown> = {},
    options: ExecuteOptions = {},
  ): Promise<unknown> {
    const { timeoutMs = COMMAND_TIMEOUT_MS, signal, fds = [] } = options;
    signal?.throwIfAborted();
    const before = this.#idle;
    let isGivenUp = false;
    const answer = before.then(() => {
      if (!isGivenUp) return this.#send(command, args, fds);
    });
    // An answer that nobody waits for any more still has to come before the next command may go.
    this.#idle = answer.catch(() => {});
    const error = new MapramError(
      'E_QMP',
      `QEMU did not answer the QMP command ${command} within ${timeoutMs / 1000} s`,
      { path: this.#path },
    );
    try {
      return await within(answer, { timeoutMs, error, signal });
    } finally {
      isGivenUp = true;
    }
  }

  /** Closes the connection; commands that are on their way fail. */
  close(): void {
    this.#end(new MapramError('E_QMP', 'The QMP connection was closed', { path: this.#path }));
  }

  /** Whether the connection has ended, from either side or because what came over it was no QMP. */
  get hasEnded(): boolean {
    return this.#ended !== undefined;
  }

  #send(command: string, args: Record<string, unknown>, fds: readonly number[]): Promise<unknown> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    this.#lastId += 1;
    const id = this.#lastId;
    const line = `${JSON.stringify({ execute: command, arguments: args, id })}\n`;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { command, resolve, reject });
      try {
        if (fds.length === 0) this.#socket.write(line);
        else this.#sendWithFds(line, fds);
      } catch (error) {
        this.#pending.delete(id);
        reject(error);
      }
    });
  }

  #sendWithFds(line: string, fds: readonly number[]): void {
    if (this.#socket.writableLength !== 0) {
      throw new MapramError('E_QMP', 'QEMU does not read its QMP socket: an earlier line is still queued', {
        path: this.#path,
      });
    }
    this.#connection.sendWithFds(Buffer.from(line), fds);
  }

  #receive(chunk: Buffer): void {
    try {
      for (const line of this.#splitter.push(chunk)) this.#dispatch(parseMessage(line, this.#path));
    } catch (error) {
      this.#end(error as MapramError);
    }
  }

  #dispatch(message: Message): void {
    if (typeof message['event'] === 'string') {
      this.events.emit(message['event'], message);
      return;
    }
    if ('QMP' in message) {
      this.#greeted.resolve(undefined);
      return;
    }
    const pending = this.#pending.get(Number(message['id']));
    if (pending === undefined) {
      // QEMU answers without an id only what it cannot parse, and we send nothing like that.
      throw new MapramError('E_QMP', 'The QMP socket sent an answer that belongs to no command', {
        path: this.#path,
      });
    }
    this.#pending.delete(Number(message['id']));
    if ('return' in message) pending.resolve(message['return']);
    else pending.reject(refusal(pending.command, message['error'], this.#path));
  }

  #end(error: MapramError): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    this.#socket.destroy();
    this.#connection.close();
    this.#greeted.reject(error);
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
  }
}

interface PromiseWithResolvers {
  promise: Promise<unknown>;
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

function promiseWithResolvers(): PromiseWithResolvers {
  let resolve = (_: unknown): void => {};
  let reject = resolve;
  const promise = new Promise((whenDone, whenFailed) => {
    resolve = whenDone;
    reject = whenFailed;
  });
  // The connection may end when nobody waits for the greeting any more.
  promise.catch(() => {});
  return { promise, resolve, reject };
}

/** `work`, unless the time is over or the signal comes first. */
async function within<T>(
  work: Promise<T>,
  limit: { timeoutMs: number; error: MapramError; signal: AbortSignal | undefined },
): Promise<T> {
  const { timeoutMs, error, signal } = limit;
  let timer: NodeJS.Timeout | undefined;
  let onAbort = (): void => {};
  const ended = new Promise<never>((_, reject) => {
    if (timeoutMs > 0) timer = setTimeout(() => reject(error), timeoutMs);
    onAbort = () => reject(signal?.reason);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([work, ended]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  }
}

function parseMessage(line: string, path: string): Message {
  try {
    const message: unknown = JSON.parse(line);
    if (typeof message === 'object' && message !== null && !Array.isArray(message)) return message as Message;
  } catch {
    // Reported below, with the line's beginning instead of the parser's complaint.
  }
  throw new MapramError(
    'E_QMP',
    `The socket does not speak QMP: it sent ${JSON.stringify(line.slice(0, 80))}`,
    {
      path,
    },
  );
}

function refusal(command: string, error: unknown, path: string): MapramError {
  const description = (error as { desc?: unknown } | undefined)?.desc;
  return new MapramError('E_QMP', `QEMU refused the QMP command ${command}: ${String(description)}`, {
    path,
  });
}

function closedError(path: string, cause?: Error): MapramError {
  return new MapramError('E_GUEST_GONE', 'QEMU closed the QMP connection: its process ended or was killed', {
    path,
    cause,
  });
}
