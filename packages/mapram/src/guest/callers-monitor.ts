import { MapramError, messageOf } from '../errors.ts';
import type { Monitor, MonitorEvents } from './monitor.ts';
import { answered, type Notice } from './silence.ts';

/**
 * A program's monitor whose failures, whatever they are, come as MapramErrors or as the signal's reason, and which keeps nobody
 * waiting for longer than was asked, whether it looks at the options or not.
 *
 * @param hasEnded whether the guest's process has: nothing is sent then, for another QEMU may listen there by now.
 */
export function callersMonitor(
  monitor: Monitor,
  hasEnded: () => boolean = () => false,
  notice: Notice = () => {},
): Monitor {
  return {
    events: callersEvents(monitor.events),
    pid: monitor.pid,
    execute: async (command, args, options = {}) => {
      const { signal, fds = [] } = options;
      const answer = async (): Promise<unknown> => monitor.execute(command, args, options);
      try {
        if (hasEnded()) throw new MapramError('E_GUEST_GONE', "QEMU's process has ended");
        return await answered(answer(), { ...options, command, pid: monitor.pid, notice });
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
