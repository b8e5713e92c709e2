import type { ProcessHandle } from '../native.ts';
import { callersMonitor } from './callers-monitor.ts';
import { DescriptorHandover } from './descriptors.ts';
import type { Handover } from './handover.ts';
import type { ExecuteOptions, Monitor } from './monitor.ts';
import { QmpClient } from './qmp.ts';
import { ScratchFileHandover } from './scratch-file.ts';
import type { Notice } from './silence.ts';

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
  /** What goes with the commands of the job that it was made for: they end with the job. */
  options: ExecuteOptions;
  /** How device state and images get to it and back. */
  handover: Handover;
  /** QEMU's process, as the caller says. */
  claimedPid: number | undefined;
  /** The process that listens on our own connection's socket: 0 if it is in none of our pid namespaces. */
  peerPid?: number | undefined;
  /** The guest's process, once it is held: when it has ended, a monitor of the caller's may lead to another QEMU. */
  process?: ProcessHandle | undefined;
  /** Whether our own connection has ended, so that no command gets through any more. */
  isLost(): boolean;
  /** Ends our own connection; a monitor of the caller's stays open. */
  close(): void;
}

/**
 * Connects to the guest, unless the caller has.
 *
 * @param notice told that QEMU keeps a command waiting, and undefined when it does not any more.
 */
export async function openGuest(guest: Guest, signal?: AbortSignal, notice?: Notice): Promise<GuestLink> {
  const options = { signal };
  if ('monitor' in guest) {
    const monitor = callersMonitor(guest.monitor, () => link.process?.hasEnded() === true, notice);
    const { scratchFile } = guest;
    const handover =
      scratchFile === undefined
        ? new DescriptorHandover(monitor, signal)
        : new ScratchFileHandover(monitor, scratchFile, signal);
    const claimedPid = monitor.pid;
    const link: GuestLink = { monitor, options, handover, claimedPid, isLost: () => false, close: () => {} };
    return link;
  }
  const client = await QmpClient.connect(guest.qmp, { signal, notice });
  return {
    monitor: client,
    options,
    handover: new DescriptorHandover(client, signal),
    claimedPid: guest.pid,
    peerPid: client.peerPid,
    isLost: () => client.hasEnded,
    close: () => client.close(),
  };
}
