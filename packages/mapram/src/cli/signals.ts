import { MapramError } from '../errors.ts';

/** The signals that cancel a command, and the exit status of each. */
const STATUSES = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

/** A signal that cancels a command. */
type SignalName = keyof typeof STATUSES;

/** SIGINT, SIGTERM and SIGHUP turned into an AbortSignal for the time of one command. */
export interface Interruption {
  /** Aborted by the first signal; its reason is an E_CANCELLED error. */
  signal: AbortSignal;
  /** 128 and the signal's number, once one came. */
  status(): number | undefined;
  /** Gives the signals back to Node. */
  release(): void;
}

/** What {@link watchInterruption} needs of a process; tests pass their own. */
export interface SignalSource {
  on(signal: SignalName, listener: (name: SignalName) => void): unknown;
  off(signal: SignalName, listener: (name: SignalName) => void): unknown;
  exit(status: number): void;
}

/** What is said when a signal comes. */
export interface SignalNotices {
  /** When the first one cancels the command. */
  first(): void;
  /** When the second one is about to exit the process. */
  second(): void;
}

/** The first signal cancels the command; a second one exits the process at once. */
export function watchInterruption(source: SignalSource, notices: SignalNotices): Interruption {
  const controller = new AbortController();
  let status: number | undefined;
  const receive = (name: SignalName): void => {
    if (status !== undefined) {
      notices.second();
      source.exit(STATUSES[name]);
      return;
    }
    status = STATUSES[name];
    notices.first();
    controller.abort(new MapramError('E_CANCELLED', `interrupted by ${name}`));
  };
  const names = Object.keys(STATUSES) as SignalName[];
  for (const name of names) source.on(name, receive);
  return {
    signal: controller.signal,
    status: () => status,
    release: () => {
      for (const name of names) source.off(name, receive);
    },
  };
}
