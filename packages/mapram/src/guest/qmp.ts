import { EventEmitter } from 'node:events';
import { Socket } from 'node:net';
import { asMapramError, type ErrorCode, MapramError } from '../errors.ts';
import { ProcessHandle, UnixConnection } from '../native.ts';
import { within } from '../within.ts';
import { endsWithin } from './ends-within.ts';
import { MessageSplitter, noQmp } from './message-splitter.ts';
import type { ExecuteOptions, Monitor } from './monitor.ts';
import { parseQmpAddress, type QmpAddress } from './qmp-address.ts';
import { answered, type Notice, type Waiting, whyNoGreeting } from './silence.ts';

/** QEMU greets at once unless another client holds the socket. */
const GREETING_TIMEOUT_MS = 5_000;
/** A process that dies closes its connections before it has ended. */
const DEATH_TIMEOUT_MS = 1_000;
/** The greeting, which has no id, is waited for as the answer with this one. */
const GREETING_ID = Symbol('greeting');

/** What {@link QmpClient.connect} takes. */
export interface ConnectOptions {
  /** Longest wait for QEMU's greeting in milliseconds; default 5000. */
  timeoutMs?: number | undefined;
  /** Gives up connecting. */
  signal?: AbortSignal | undefined;
  /** Told of commands that wait. */
  notice?: Notice | undefined;
  /** Silence in milliseconds after which that is told; default 10000. */
  silenceMs?: number | undefined;
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
 * QEMU takes commands in their order and answers them so; each is sent at once, for a command whose answer never comes must not
 * keep back the one that lets the guest run. Descriptors are sent only when no answer is outstanding: libuv leaves part of a line
 * in its queue while the socket's buffer is full, and sent past that queue they would break the line apart; and QEMU keeps only
 * the last ones that it was sent.
 */
export class QmpClient implements Monitor {
  /** Emits each event of QEMU under its own name. */
  readonly events: EventEmitter = new EventEmitter();
  readonly #path: string;
  readonly #connection: UnixConnection;
  readonly #socket: Socket;
  readonly #splitter = new MessageSplitter();
  /** What is the same for all commands that wait. */
  readonly #waiting: Omit<Waiting, 'command'>;
  /** The process that listens on the socket, as far as the kernel tells: 0 if it is in none of our pid namespaces. */
  readonly peerPid: number;
  readonly #pending = new Map<unknown, Pending>();
  #lastId = 0;
  /** The answer to the latest command. */
  #latest: Promise<unknown> | undefined;
  /** Why nothing more can be sent, once that is so. */
  #ended: MapramError | undefined;

  private constructor({ name: path, socket }: QmpAddress, options: ConnectOptions) {
    try {
      this.#connection = UnixConnection.connect(socket);
    } catch (error) {
      // With the name that users know instead of the addon's.
      throw asMapramError(error).at(path);
    }
    this.#path = path;
    this.peerPid = this.#connection.peerPid();
    const { notice = () => {}, silenceMs } = options;
    this.#waiting = { path, pid: this.peerPid, notice, silenceMs };
    this.#socket = new Socket({ fd: this.#connection.takeFd(), readable: true, writable: true });
    this.#socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    this.#socket.on('error', (cause) => this.#end(closedError(path, cause)));
    this.#socket.on('close', () => this.#end(closedError(path)));
  }

  /**
   * Connects to the QMP socket that `address` names, as {@link parseQmpAddress} reads it, and leaves the negotiation mode.
   *
   * @throws {MapramError} E_USAGE, E_NOT_FOUND, E_PERMISSION, or E_QMP: nobody listens, another client is connected, QEMU
   *   does not get to it, or it is no QMP socket; or the signal's reason.
   */
  static async connect(address: string, options: ConnectOptions = {}): Promise<QmpClient> {
    const { timeoutMs = GREETING_TIMEOUT_MS, signal } = options;
    signal?.throwIfAborted();
    const client = new QmpClient(parseQmpAddress(address), options);
    const peer = ProcessHandle.tryOpen(client.peerPid);
    try {
      const greeting = client.#answer(GREETING_ID, 'greeting');
      await within(greeting, { timeoutMs, late: () => client.#noGreeting(timeoutMs), signal });
      await client.execute('qmp_capabilities', {}, { signal, timeoutMs });
      return client;
    } catch (error) {
      client.close();
      throw await client.#explain(error, peer);
    } finally {
      peer?.close();
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
    options.signal?.throwIfAborted();
    let isOver = false;
    const answer = this.#send(command, args, options.fds ?? [], () => isOver);
    try {
      return await answered(answer, { ...options, ...this.#waiting, command });
    } finally {
      isOver = true;
    }
  }

  async #noGreeting(timeoutMs: number): Promise<MapramError> {
    const reason = await whyNoGreeting(this.#path, this.peerPid);
    return this.#error(`No greeting came from the QMP socket within ${timeoutMs / 1000} s. ${reason}`);
  }

  /** Why there is no connection: where `error` says that QEMU has ended, the other end may be a process that has not. */
  async #explain(error: unknown, peer: ProcessHandle | undefined): Promise<unknown> {
    const isGone = error instanceof MapramError && error.code === 'E_GUEST_GONE';
    if (!isGone || peer === undefined || (await endsWithin(peer, DEATH_TIMEOUT_MS))) return error;
    const message =
      'What listens on the QMP socket closed the connection and lives on: a relay (socat, ssh -L) perhaps that does not reach QEMU';
    return this.#error(message, error);
  }

  #error(message: string, cause?: unknown): MapramError {
    return new MapramError('E_QMP', message, { path: this.#path, cause });
  }

  /** Closes the connection; commands that are on their way fail. */
  close(): void {
    this.#end(this.#error('The QMP connection was closed'));
  }

  /** Whether the connection has ended, from either side or because what came over it was no QMP. */
  get hasEnded(): boolean {
    return this.#ended !== undefined;
  }

  /** @param isGivenUp whether nobody waits for the answer any more: descriptors may be closed then, and are not sent. */
  async #send(
    command: string,
    args: Record<string, unknown>,
    fds: readonly number[],
    isGivenUp: () => boolean,
  ): Promise<unknown> {
    while (fds.length > 0 && this.#pending.size > 0) await this.#latest?.catch(() => {});
    if (this.#ended !== undefined) throw this.#ended;
    if (isGivenUp()) throw this.#error(`The QMP command ${command} was not sent`);
    this.#lastId += 1;
    const line = `${JSON.stringify({ execute: command, arguments: args, id: this.#lastId })}\n`;
    if (fds.length === 0) this.#socket.write(line);
    else this.#connection.sendWithFds(Buffer.from(line), fds);
    return this.#answer(this.#lastId, command);
  }

  #answer(id: unknown, command: string): Promise<unknown> {
    this.#latest = new Promise((resolve, reject) => this.#pending.set(id, { command, resolve, reject }));
    return this.#latest;
  }

  #receive(chunk: Buffer): void {
    try {
      for (const text of this.#splitter.push(chunk)) this.#dispatch(parseMessage(text));
    } catch (error) {
      this.#end(asMapramError(error).at(this.#path));
    }
  }

  #dispatch(message: Message): void {
    if (typeof message['event'] === 'string') {
      // QEMU's names are in capitals; to Node's emitter `error` would be more than a name.
      if (message['event'] !== 'error') this.events.emit(message['event'], message);
      return;
    }
    const isGreeting = 'QMP' in message;
    const id = isGreeting ? GREETING_ID : message['id'];
    const pending = this.#pending.get(id);
    if (pending === undefined) {
      // QEMU answers without an id only what it cannot parse, and we send nothing like that.
      throw new MapramError('E_QMP', 'The QMP socket sent an answer that belongs to no command');
    }
    this.#pending.delete(id);
    if (isGreeting || 'return' in message) pending.resolve(message['return']);
    else pending.reject(this.#refusal(pending.command, message['error']));
  }

  #refusal(command: string, error: unknown): MapramError {
    const description = String((error as { desc?: unknown } | undefined)?.desc);
    const said = this.#error(`QEMU refused the QMP command ${command}: ${description}`);
    const meaning = MEANINGS.find(({ words }) => words.test(description));
    if (meaning === undefined) return said;
    return new MapramError(meaning.code, meaning.message, { path: this.#path, cause: said });
  }

  #end(error: MapramError): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    this.#socket.destroy();
    this.#connection.close();
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
  }
}

function parseMessage(text: string): Message {
  try {
    return JSON.parse(text) as Message;
  } catch {
    throw noQmp(text);
  }
}

/** What a refusal of QEMU's means where its own words do not say what to do; by a part of its words (QEMU 10.0.2). */
const MEANINGS: readonly { words: RegExp; code: ErrorCode; message: string }[] = [
  {
    words: /SCM_RIGHTS/,
    code: 'E_QMP',
    message:
      'No descriptor reaches QEMU through this socket, which is a relay (socat, ssh -L): mapram needs a unix socket of QEMU itself, on its host',
  },
  {
    words: /permitted only after machine initialization/,
    code: 'E_GUEST_UNSUPPORTED',
    message:
      'QEMU was started with -preconfig and has no machine yet: give it the QMP command x-exit-preconfig first',
  },
];

function closedError(path: string, cause?: Error): MapramError {
  const message = 'QEMU closed the QMP connection: its process ended or was killed';
  return new MapramError('E_GUEST_GONE', message, { path, cause });
}
