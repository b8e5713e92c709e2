import { kernelCpuSecondsSince, kernelThreadTimes } from './cpu.ts';
import type { MemoryPlace } from './guest-memory.ts';
import type { Workload } from './workload.ts';

/** What one save or restore cost. */
export interface Measurement {
  /**
   * A save's: from `stop` (of a guest that is stopped already: from when memory and disk were found fit, or from QEMU's command) to
   * durable. A restore's: from the command to done, without the start of Node.
   */
  milliseconds: number;
  /** For how long the guest stood still for it: of a save of a stopped guest, all the time. */
  pauseMilliseconds?: number;
  /** User and system time of all processes that took part, QEMU's included. */
  cpuSeconds: number;
  /** mapram's share of that, without the start of Node: what `mapram --version` costs. QEMU does all of the work where it is absent. */
  engineCpuSeconds?: number;
  /** Where mapram took pages from or put them, where it says so. */
  source?: string;
  /** Time of kernel threads meanwhile, as far as they can be told. */
  kernelCpuSeconds: number;
  /** Bytes that had to be moved: the pages that are not zero. */
  dataBytes: number;
  /** Bytes that the guest's memory takes on the host beyond what it took before. */
  memoryGrownBytes?: number;
  /** What else is worth keeping in the results. */
  details: Record<string, unknown>;
}

/** What all who save or restore in a session share. */
export interface Stage {
  workload: Workload;
  /** Where shared memory is made; absent: private memory. */
  place: MemoryPlace | undefined;
  /** Where images go. */
  directory: string;
  /** What a command of mapram costs that does nothing. */
  start: CommandStart;
}

/** What a command costs: medians. */
export interface CommandStart {
  milliseconds: number;
  cpuSeconds: number;
}

/** Somebody who saves or restores. */
export interface Contender {
  /** Migration type as the table names it. */
  type: string;
  /** Absent where there are none to choose. */
  channels?: number;
  /** Runs once, checks what came of it, and leaves nothing behind. Throws if the result is wrong or incomplete. */
  run(): Promise<Measurement>;
}

/** One run of a contender. */
export interface Run {
  type: string;
  channels?: number;
  /** Counted from 1; 0 is the warm-up, which is kept but never counted. */
  round: number;
  measurement?: Measurement;
  /** Why the run does not count. */
  voided?: string;
}

/** Adds the kernel threads' share to what `work` measured. */
export async function withKernelTime(
  work: () => Promise<Omit<Measurement, 'kernelCpuSeconds'>>,
): Promise<Measurement> {
  const before = kernelThreadTimes();
  const measurement = await work();
  return { ...measurement, kernelCpuSeconds: kernelCpuSecondsSince(before) };
}
