import { MapramError } from '../errors.ts';
import { COMMAND_TIMEOUT_MS, type ExecuteOptions, type Monitor, type MonitorEvents } from './monitor.ts';
import { within } from './within.ts';

/**
 * A program's monitor whose failures, whatever they are, come as MapramErrors or as the signal's reason, and which keeps nobody
 * waiting for longer than was asked, whether it looks at the options or not.
 */
export function callersMonitor(monitor: Monitor): Monitor {
  return {
    events: callersEvents(monitor.events),
    pid: monitor.pid,
    execute: async (command, args, options = {}) => {
      const { timeoutMs = COMMAND_TIMEOUT_MS, signal } = options;
      const answer = async (): Promise<unknown> => monitor.execute(command, args, options);
      try {
        return await within(answer(), { timeoutMs, late: async () => noAnswer(command, timeoutMs), signal });
      } catch (error) {
        throw explain(command, error, options);
      }
    },
  };
}

function callersEvents(events: MonitorEvents): MonitorEvents {
  return {
    on: (name, listener) => {
      try {
        events.on(name, listener);
      } catch (cause) {
        throw new MapramError('E_QMP', `The monitor failed to listen for the event ${name}`, { cause });
      }
    },
    off: (name, listener) => {
      try {
        events.off(name, listener);
      } catch {
        // Nothing hangs on it any more.
      }
    },
  };
}

function noAnswer(command: string, timeoutMs: number): MapramError {
  const message = `The monitor did not answer the QMP command ${command} within ${timeoutMs / 1000} s`;
  return new MapramError('E_QMP', message);
}

function explain(command: string, error: unknown, options: ExecuteOptions = {}): unknown {
  const { signal, fds = [] } = options;
  if (signal?.aborted) return signal.reason;
  if (error instanceof MapramError) return error;
  const reason = error instanceof Error ? error.message : String(error);
  const hint = fds.length === 0 ? '' : '; for a monitor that cannot pass descriptors name a scratchFile';
  return new MapramError('E_QMP', `The monitor failed at the QMP command ${command}: ${reason}${hint}`, {
    cause: error,
  });
}
