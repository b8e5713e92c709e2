import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Operation, Rival } from './arguments.ts';
import { ddFloor, fioCeilings } from './disk.ts';
import { startSourceGuests } from './guests.ts';
import type { Contender, Run } from './measurement.ts';
import { type MemoryState, mapramRestore, needsStream, prepareRestores, stockRestores } from './restore.ts';
import { runRounds } from './rounds.ts';
import { mapramSave, stockSaves } from './save.ts';
import { DIRECT_STOCK_TYPE, STOCK_METHODS, type StockMethod } from './stock-save.ts';
import { withCleanup } from './with-cleanup.ts';
import { makeWorkload, type Workload, type WorkloadName } from './workload.ts';

/** One workload, one operation, one disk. */
export interface SessionPlan {
  operation: Operation;
  workload: WorkloadName;
  guestBytes: number;
  /** Only restores into shared memory have one. */
  memory?: MemoryState;
  channels: number[];
  /** QEMU's, where they are others than mapram's. */
  stockChannels?: number[];
  engines: string[];
  against: Rival[];
  /** Measure QEMU's way with multifd and direct I/O alone. */
  onlyDirectStock?: true;
  rounds: number;
}

/** A plan and all that came of it, warm-up and void runs included. */
export interface Session extends SessionPlan {
  dataBytes: number;
  /** When it began, as ISO 8601 has it. */
  began: string;
  /** How long it took, with preparations and checks. */
  seconds: number;
  runs: Run[];
}

/** What a session is called in file names. */
export function sessionName({ operation, workload, memory }: SessionPlan): string {
  return [operation, workload, ...(memory === undefined ? [] : [memory])].join('-');
}

/** Bytes that a session has on the disk at most. */
export function bytesOnDisk(plan: SessionPlan): number {
  const { isSparse, dataBytes, bytes } = makeWorkload(plan.workload, plan.guestBytes);
  return filesAtOnce(plan) * (isSparse ? 2 * dataBytes : bytes);
}

/** How many files that hold the workload there are at once. */
function filesAtOnce(plan: SessionPlan): number {
  if (plan.operation === 'save') return 1;
  const disk = plan.against.some((rival) => rival !== 'qemu');
  return 1 + Number(needsStream(stockMethods(plan))) + Number(disk);
}

/** Measures what `plan` says, with images below `parent`. Everything it needed is gone when it returns. */
export function runSession(plan: SessionPlan, parent: string, say: (text: string) => void): Promise<Session> {
  return withCleanup(async (cleanup) => {
    const began = new Date();
    const directory = mkdtempSync(join(parent, 'mapram-bench-'));
    cleanup.add(() => rmSync(directory, { recursive: true, force: true }));
    const workload = makeWorkload(plan.workload, plan.guestBytes);
    say(`${sessionName(plan)}: making a guest of ${plan.guestBytes / 2 ** 20} MiB`);
    const movers =
      plan.operation === 'save'
        ? saveContenders(plan, {
            workload,
            directory,
            guests: await startSourceGuests(workload, directory, cleanup),
          })
        : restoreContenders(
            plan,
            await prepareRestores(workload, plan.memory, stockMethods(plan), directory, cleanup),
          );
    const runs = await runRounds(
      [...movers, ...diskContenders(plan, workload, directory)],
      plan.rounds,
      directory,
      say,
    );
    const seconds = (Date.now() - began.getTime()) / 1000;
    return { ...plan, dataBytes: workload.dataBytes, began: began.toISOString(), seconds, runs };
  });
}

function saveContenders(plan: SessionPlan, stage: Parameters<typeof mapramSave>[0]): Contender[] {
  return [
    ...plan.engines.flatMap((engine) => plan.channels.map((count) => mapramSave(stage, engine, count))),
    ...stockSaves(stage, stockMethods(plan), plan.stockChannels ?? plan.channels),
  ];
}

function restoreContenders(plan: SessionPlan, stage: Parameters<typeof mapramRestore>[0]): Contender[] {
  return [
    ...plan.engines.flatMap((engine) => plan.channels.map((count) => mapramRestore(stage, engine, count))),
    ...stockRestores(stage, stockMethods(plan), plan.stockChannels ?? plan.channels),
  ];
}

function stockMethods({ against, onlyDirectStock }: SessionPlan): StockMethod[] {
  if (!against.includes('qemu')) return [];
  return onlyDirectStock ? STOCK_METHODS.filter(({ type }) => type === DIRECT_STOCK_TYPE) : STOCK_METHODS;
}

function diskContenders(
  { operation, against }: SessionPlan,
  workload: Workload,
  directory: string,
): Contender[] {
  return [
    ...(against.includes('fio') ? fioCeilings(operation, workload, directory) : []),
    ...(against.includes('dd') ? [ddFloor(operation, workload, directory)] : []),
  ];
}
