import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { waitFor } from './wait.ts';

/** An event as QEMU sent it. */
export interface QmpEvent {
  event: string;
  data?: Record<string, unknown>;
}

interface Reply {
  return?: unknown;
  error?: { class: string; desc: string };
  event?: string;
  id?: number;
}

/** A QMP client of the tests' own: small, one command at a time or many, no fds. */
export class Qmp {
  /** Every event since the connection was made. */
  readonly events: QmpEvent[] = [];
  #tellOfArrival: (() => void)[] = [];
  readonly #socket: Socket;
  readonly #waiting = new Map<
    number,
    { resolve: (value: unknown) => void; reject: (error: Error) => void }
  >();
  #next = 1;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      for (const { reject } of this.#waiting.values()) reject(new Error('QMP connection closed'));
      this.#waiting.clear();
    });
    // The lines' reader repeats the socket's errors; a QEMU that is killed resets its connections.
    createInterface({ input: socket })
      .on('error', () => {})
      .on('line', (line) => this.#take(JSON.parse(line) as Reply));
  }

  /** Connects as soon as QEMU listens, and negotiates. */
  static async connect(path: string, timeoutMs = 60_000): Promise<Qmp> {
    const socket = await waitFor(`QMP at ${path}`, timeoutMs, () => tryConnect(path));
    const qmp = new Qmp(socket);
    await qmp.execute('qmp_capabilities');
    return qmp;
  }

  /** Runs one command; rejects with QEMU's words. */
  execute<T = unknown>(command: string, args: Record<string, unknown> = {}): Promise<T> {
    const id = this.#next++;
    return new Promise<T>((resolve, reject) => {
      this.#waiting.set(id, { resolve: resolve as (value: unknown) => void, reject });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  /** The guest's run state. */
  async status(): Promise<string> {
    return (await this.execute<{ status: string }>('query-status')).status;
  }

  /** Waits until the run state is one of `states`. */
  async waitForStatus(...states: string[]): Promise<string> {
    return waitFor(`run state ${states.join(' or ')}`, 120_000, async () => {
      const state = await this.status();
      return states.includes(state) ? state : undefined;
    });
  }

  /** Resolves when the next event arrives, or after `atMostMs`. */
  arrival(atMostMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, atMostMs);
      this.#tellOfArrival.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  /** Frees the socket for the next client. */
  async close(): Promise<void> {
    if (this.#socket.destroyed) return;
    const closed = new Promise((resolve) => this.#socket.once('close', resolve));
    this.#socket.destroy();
    await closed;
  }

  #take(reply: Reply): void {
    if (reply.event !== undefined) {
      this.events.push(reply as QmpEvent);
      for (const tell of this.#tellOfArrival.splice(0)) tell();
      return;
    }
    const waiting = reply.id === undefined ? undefined : this.#waiting.get(reply.id);
    if (waiting === undefined || reply.id === undefined) return;
    this.#waiting.delete(reply.id);
    if (reply.error) waiting.reject(new Error(reply.error.desc));
    else waiting.resolve(reply.return);
  }
}

function tryConnect(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => resolve(socket));
    socket.once('error', () => resolve(undefined));
  });
}
