import { MapramError, messageOf } from '../errors.ts';
import { COMMAND_TIMEOUT_MS, type Monitor, type MonitorEvents } from './monitor.ts';
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
      const { timeoutMs = COMMAND_TIMEOUT_MS, signal, fds = [] } = options;
      const answer = async (): Promise<unknown> => monitor.execute(command, args, options);
      const late = async (): Promise<MapramError> => {
        const seconds = timeoutMs / 1000;
        const message = `The monitor did not answer the QMP command ${command} within ${seconds} s`;
        return new MapramError('E_QMP', message);
      };
      try {
        return await within(answer(), { timeoutMs, late, signal });
      } catch (cause) {
        signal?.throwIfAborted();
        if (cause instanceof MapramError) throw cause;
        const hint =
          fds.length === 0 ? '' : '; for a monitor that cannot pass descriptors name a scratchFile';
        const message = `The monitor failed at the QMP command ${command}: ${messageOf(cause)}${hint}`;
        throw new MapramError('E_QMP', message, { cause });
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
