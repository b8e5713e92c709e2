import { MapramError } from '../errors.ts';
import type { ExecuteOptions, Monitor } from './monitor.ts';

/** A program's monitor whose failures, whatever they are, come as MapramErrors or as the signal's reason. */
export function callersMonitor(monitor: Monitor): Monitor {
  return {
    events: monitor.events,
    pid: monitor.pid,
    execute: async (command, args, options) => {
      try {
        return await monitor.execute(command, args, options);
      } catch (error) {
        throw explain(command, error, options);
      }
    },
  };
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
