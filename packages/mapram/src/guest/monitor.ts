/** An event of QEMU, as QMP sends it. */
export interface MonitorEvent {
  /** Its name, such as `RESUME`. */
  event: string;
  /** What belongs to it. */
  data?: Record<string, unknown> | undefined;
}

/** Where a monitor's events come from; each is emitted under its own name, as by an EventEmitter of Node. */
export interface MonitorEvents {
  /** Calls `listener` for each event of that name. */
  on(name: string, listener: (event: MonitorEvent) => void): unknown;
  /** Ends that. */
  off(name: string, listener: (event: MonitorEvent) => void): unknown;
}

/** Longest wait in milliseconds for a command: QEMU answers at once unless its main thread is busy. */
export const COMMAND_TIMEOUT_MS = 60_000;

/** Longest wait in milliseconds for a command that puts the guest back: a QEMU may be busy and answer late. */
export const PUT_BACK_TIMEOUT_MS: number = 10 * 60_000;

/** Longest wait for a command that gives QEMU back what it had, after a failure that leaves it of no use: it may never answer. */
export const GIVE_BACK_TIMEOUT_MS = 2_000;

/** What goes with a command. */
export interface ExecuteOptions {
  /** Descriptors that QEMU shall get along with the command; they stay the caller's. */
  fds?: readonly number[] | undefined;
  /** Gives up waiting for the answer. The command itself cannot be taken back. */
  signal?: AbortSignal | undefined;
  /** Longest wait for the answer in milliseconds; default 60000; 0 waits for as long as the connection lasts. */
  timeoutMs?: number | undefined;
  /** Whether it is no news that the answer takes long. */
  mayTakeLong?: boolean | undefined;
}

/**
 * A connection to a guest's QMP monitor. Programs that hold the only one already, as libvirt's users do, hand in an object
 * of theirs. Commands must reach QEMU in the order in which they are given, whether or not the earlier ones are answered, and
 * none may reach another QEMU than the first did.
 */
export interface Monitor {
  /** Runs a QMP command and resolves with its `return` value; rejects if QEMU refuses it. */
  execute(command: string, args?: Record<string, unknown>, options?: ExecuteOptions): Promise<unknown>;
  /** The events of QEMU. RESUME and RESET must be among them, for they tell that a guest ran while it was saved. */
  events: MonitorEvents;
  /** QEMU's process, where the program knows it or QEMU runs in another pid namespace; it is verified. */
  pid?: number | undefined;
}
