import { GIVE_BACK_TIMEOUT_MS, type Monitor, PUT_BACK_TIMEOUT_MS } from './monitor.ts';

/** How bytes get to QEMU and back. Every name that is given is one that QEMU can open. */
export interface Handover {
  /** The QMP commands that it takes. */
  readonly commands: readonly string[];

  /** Whether what is handed to QEMU is then in the hands of process `pid`. */
  reaches(pid: number): Promise<boolean>;

  /** Whether QEMU can be left alone with a name that it was told to write to: nothing stays under it. */
  readonly canBeLeft: boolean;

  /** Has QEMU write to a name, by `write`, and returns what it wrote. */
  receive(write: (path: string) => Promise<void>): Promise<Uint8Array>;

  /** Calls `use` with a name under which QEMU can read `bytes`. What can go wrong with them on our side has gone by then. */
  send(bytes: Uint8Array, use: (path: string) => Promise<void>): Promise<void>;

  /**
   * Calls `use` with a name under which QEMU can open files of ours. QEMU picks the descriptor whose access mode and O_DIRECT
   * flag are those that it opens with (QEMU 10.0.2, monitor_fdset_dup_fd_add in monitor/fds.c).
   *
   * @throws {MapramError} E_USAGE where descriptors cannot be passed.
   */
  lend(fds: readonly number[], use: (path: string) => Promise<void>): Promise<void>;
}

/** Has QEMU give up what it was handed, by `command`. Once `hurry` is aborted it is given little time for that. */
export async function takeBack(
  monitor: Monitor,
  command: string,
  args: Record<string, unknown>,
  hurry: AbortSignal | undefined,
): Promise<void> {
  const late = new AbortController();
  const onHurry = (): void => void setTimeout(() => late.abort(), GIVE_BACK_TIMEOUT_MS).unref();
  if (hurry?.aborted) onHurry();
  hurry?.addEventListener('abort', onHurry);
  const options = { timeoutMs: PUT_BACK_TIMEOUT_MS, signal: late.signal };
  // A QEMU that is gone has nothing any more, and no failure here may hide the reason for which we leave.
  await monitor.execute(command, args, options).catch(() => {});
  hurry?.removeEventListener('abort', onHurry);
}
