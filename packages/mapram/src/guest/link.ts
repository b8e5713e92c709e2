import { MapramError } from '../errors.ts';
import { callersMonitor } from './callers-monitor.ts';
import type { Monitor } from './monitor.ts';
import { QmpClient } from './qmp.ts';

/** A guest, as a caller of save and restore names it. */
export type Guest = QmpGuest | MonitoredGuest;

/** A guest whose QMP socket is free for us. */
export interface QmpGuest {
  /** Path of the QMP socket. */
  qmp: string;
  /** QEMU's process, where it cannot be found through QMP because it runs in another pid namespace; it is verified. */
  pid?: number | undefined;
}

/** A guest whose only QMP connection the program holds already. */
export interface MonitoredGuest {
  /** The program's connection. */
  monitor: Monitor;
  /**
   * For a monitor that cannot pass descriptors: a path that QEMU may open under the same name. Device state passes through this
   * file, which is replaced, and removed afterwards.
   */
  scratchFile?: string | undefined;
}

/** A guest that a job talks to. */
export interface GuestLink {
  /** Its monitor. */
  monitor: Monitor;
  /** Where device state passes if the monitor cannot pass descriptors. */
  scratchFile: string | undefined;
  /** QEMU's process, as the caller says. */
  claimedPid: number | undefined;
  /** Ends our own connection; a monitor of the caller's stays open. */
  close(): void;
}

/** Connects to the guest, unless the caller has. */
export async function openGuest(guest: Guest, signal: AbortSignal): Promise<GuestLink> {
  if ('monitor' in guest) {
    const { monitor, scratchFile } = guest;
    return { monitor: callersMonitor(monitor), scratchFile, claimedPid: monitor.pid, close: () => {} };
  }
  const client = await QmpClient.connect(guest.qmp, { signal }).catch((error: unknown) => {
    if (error instanceof MapramError) error.guestState = error.code === 'E_GUEST_GONE' ? 'gone' : 'untouched';
    throw error;
  });
  return { monitor: client, scratchFile: undefined, claimedPid: guest.pid, close: () => client.close() };
}
