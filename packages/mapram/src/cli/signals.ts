import { MapramError } from '../errors.ts';

/** SIGINT and SIGTERM turned into an AbortSignal for the time of one command. */
export interface Interruption {
  /** Aborted by the first signal; its reason is an E_CANCELLED error. */
  signal: AbortSignal;
  /** 130 or 143 once a signal came. */
  status(): number | undefined;
  /** Gives the signals back to Node. */
  release(): void;
}

/** What {@link watchInterruption} needs of a process; tests pass their own. */
export interface SignalSource {
  on(signal: 'SIGINT' | 'SIGTERM', listener: () => void): unknown;
  off(signal: 'SIGINT' | 'SIGTERM', listener: () => void): unknown;
  exit(status: number): void;
}

/** The first signal cancels the command and calls `notify`; a second one exits the process at once. */
export function watchInterruption(source: SignalSource, notify: () => void): Interruption {
  const controller = new AbortController();
  let status: number | undefined;
  const receive = (name: 'SIGINT' | 'SIGTERM', itsStatus: number): void => {
    if (status !== undefined) {
      source.exit(itsStatus);
      return;
    }
    status = itsStatus;
    notify();
    controller.abort(new MapramError('E_CANCELLED', `interrupted by ${name}`));
  };
  const onInterrupt = (): void => receive('SIGINT', 130);
  const onTerminate = (): void => receive('SIGTERM', 143);
  source.on('SIGINT', onInterrupt);
  source.on('SIGTERM', onTerminate);
  return {
    signal: controller.signal,
    status: () => status,
    release: () => {
      source.off('SIGINT', onInterrupt);
      source.off('SIGTERM', onTerminate);
    },
  };
}
