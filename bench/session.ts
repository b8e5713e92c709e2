import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from '../test/support/cleanup.ts';
import type { Operation, Rival } from './arguments.ts';
import { ddFloor, fioCeilings } from './disk.ts';
import { type MemoryKind, memoryPlace } from './guest-memory.ts';
import { startSourceGuests } from './guests.ts';
import { type Copy, type MapramWay, measureCommandStart } from './mapram.ts';
import type { Contender, Run, Stage } from './measurement.ts';
import { type MemoryState, mapramRestore, needsStream, prepareRestores, stockRestore } from './restore.ts';
import { runRounds } from './rounds.ts';
import { mapramSave, stockSave } from './save.ts';
import {
  DIRECT_STOCK_TYPE,
  STOCK_METHODS,
  type StockMethod,
  type StockWay,
  stockWays,
} from './stock-save.ts';
import { withCleanup } from './with-cleanup.ts';
import { makeWorkload, type Workload, type WorkloadName } from './workload.ts';

/** One workload, one operation, one disk. */
export interface SessionPlan {
  operation: Operation;
  workload: WorkloadName;
  guestBytes: number;
  /** Absent: private memory. */
  memory?: MemoryKind | undefined;
  /** Of shared memory that is restored into. */
  state?: MemoryState | undefined;
  channels: number[];
  /** QEMU's, where they are others than mapram's. */
  stockChannels?: number[];
  engines: string[];
  copies: Copy[];
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
export function sessionName({ operation, workload, memory, state }: What): string {
  const pages = memory === 'small' ? undefined : memory;
  return [operation, workload, pages, state].filter((word) => word !== undefined).join('-');
}

/** What is measured, however often and against whom. */
export type What = Pick<SessionPlan, 'operation' | 'workload' | 'memory' | 'state'>;

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
    const place = plan.memory && memoryPlace(plan.memory, plan.guestBytes, cleanup);
    const stage = { workload, place, directory, start: await measureCommandStart() };
    const movers = await (plan.operation === 'save' ? saves : restores)(plan, stage, cleanup);
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

async function saves(plan: SessionPlan, base: Stage, cleanup: Cleanup): Promise<Contender[]> {
  const stage = { ...base, guests: await startSourceGuests(base, cleanup) };
  return contenders(
    plan,
    (way) => mapramSave(stage, way),
    (way) => stockSave(stage, way),
  );
}

async function restores(plan: SessionPlan, base: Stage, cleanup: Cleanup): Promise<Contender[]> {
  const stage = await prepareRestores(base, plan.state, stockMethods(plan), cleanup);
  return contenders(
    plan,
    (way) => mapramRestore(stage, way),
    (way) => stockRestore(stage, way),
  );
}

/** mapram with every engine, way of copying and channel count, and QEMU in all of its ways. */
function contenders(
  plan: SessionPlan,
  ours: (way: MapramWay) => Contender,
  theirs: (way: StockWay) => Contender,
): Contender[] {
  const { engines, copies, channels: counts, stockChannels = counts } = plan;
  const ways = engines.flatMap((engine) =>
    copies.flatMap((copy) => counts.map((channels) => ({ engine, copy, channels }))),
  );
  return [...ways.map(ours), ...stockWays(stockMethods(plan), stockChannels).map(theirs)];
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
