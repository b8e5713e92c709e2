import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Cleanup } from '../test/support/cleanup.ts';
import { start } from '../test/support/cli.ts';
import { checkImage } from './check-image.ts';
import { checkMemory } from './check-memory.ts';
import { emptyFile, type MemoryPlace, memoryPlace } from './guest-memory.ts';
import { type SourceGuest, startGuest, startSourceGuest } from './guests.ts';
import { warmMemoryToFill } from './host-memory.ts';
import { interruption } from './interruption.ts';
import { median } from './statistics.ts';
import { withCleanup } from './with-cleanup.ts';
import { makeWorkload, type Workload } from './workload.ts';

/** Whole commands: planning, and reading the image's bitmap, are what the size of a guest could make slow. */
const COMMANDS = ['save', 'inspect', 'restore'] as const;
export type ScaleCommand = (typeof COMMANDS)[number];

/** What a guest costs whose RAM is 256 times its data, against one of the same data and nothing else. */
export interface Scale {
  /** Time of the huge guest over that of the dense one, formed within rounds. */
  ratios: Record<ScaleCommand, number>;
  /** Most memory that mapram had resident for the huge guest, of all its commands. */
  peakBytes: number;
  rounds: Record<GuestName, Record<ScaleCommand, Run>>[];
}

/**
 * Saves, inspects and restores a guest with `dataBytes` in 256 times as much RAM and a dense one of `dataBytes`, in turns. The saved
 * guests have ended before the restores, which need the memory.
 */
export async function measureScale(
  dataBytes: number,
  rounds: number,
  parent: string,
  cleanup: Cleanup,
  say: (text: string) => void,
): Promise<Scale> {
  const directory = mkdtempSync(join(parent, 'mapram-bench-'));
  cleanup.add(() => rmSync(directory, { recursive: true, force: true }));
  const workloads = { dense: makeWorkload('dense', dataBytes), huge: makeWorkload('huge', 256 * dataBytes) };
  const place = memoryPlace('small', 0, cleanup);
  const imageOf = (name: GuestName) => join(directory, name);
  const saves = await withCleanup(async (own) => {
    const guests = {
      dense: await startSourceGuest(workloads.dense, place, own),
      huge: await startSourceGuest(workloads.huge, place, own),
    };
    const saveOne = (name: GuestName) => measureSave(workloads[name], guests[name], imageOf(name));
    return inTurns(rounds, saveOne, (text) => say(`scale, saves, ${text}`));
  });
  const restoreOne = (name: GuestName) => measureRestore(workloads[name], place, imageOf(name));
  const restores = await inTurns(rounds, restoreOne, (text) => say(`scale, restores, ${text}`));
  const all = saves.map(({ dense, huge }, round) => {
    const restored = restores[round] as (typeof restores)[number];
    return { dense: { ...dense, ...restored.dense }, huge: { ...huge, ...restored.huge } };
  });
  const ratio = (command: ScaleCommand) =>
    median(all.map(({ huge, dense }) => huge[command].milliseconds / dense[command].milliseconds));
  return {
    ratios: { save: ratio('save'), inspect: ratio('inspect'), restore: ratio('restore') },
    peakBytes: Math.max(...all.flatMap(({ huge }) => COMMANDS.map((command) => huge[command].peakBytes))),
    rounds: all,
  };
}

type GuestName = 'dense' | 'huge';

/** Measures both guests once to warm up, and then so many rounds, either guest first in every other one. */
async function inTurns<T>(
  rounds: number,
  measureOne: (name: GuestName) => Promise<T>,
  say: (text: string) => void,
): Promise<Record<GuestName, T>[]> {
  const results: Record<GuestName, T>[] = [];
  for (let round = 0; round <= rounds; round++) {
    interruption.throwIfAborted();
    const first = round % 2 === 0 ? await measureOne('dense') : undefined;
    const huge = await measureOne('huge');
    const pair = { dense: first ?? (await measureOne('dense')), huge };
    say(`round ${round} of ${rounds}: ${JSON.stringify(pair)}`);
    if (round > 0) results.push(pair);
  }
  return results;
}

async function measureSave(
  workload: Workload,
  { qemu }: SourceGuest,
  image: string,
): Promise<{ save: Run; inspect: Run }> {
  rmSync(image, { force: true });
  const save = await runWithPeak(['save', '--qmp', qemu.socket, image]);
  await checkImage(workload, qemu, image);
  return { save, inspect: await runWithPeak(['inspect', image]) };
}

function measureRestore(workload: Workload, place: MemoryPlace, image: string): Promise<{ restore: Run }> {
  return withCleanup(async (cleanup) => {
    const memoryFile = emptyFile(workload, place, cleanup);
    const waiting = await startGuest(workload, memoryFile, true, cleanup);
    await waiting.qmp.waitForStatus('inmigrate');
    await warmMemoryToFill(workload);
    const restore = await runWithPeak(['restore', '--then', 'pause', '--qmp', waiting.socket, image]);
    checkMemory(workload, { path: memoryFile, start: 0 });
    return { restore };
  });
}

/** A command's time, and the most memory that it had resident. */
export interface Run {
  milliseconds: number;
  peakBytes: number;
}

/** Runs mapram and watches the most memory that it ever had resident. */
async function runWithPeak(args: string[]): Promise<Run> {
  const run = start([...args, '--json'], { timeoutMs: 600_000 });
  let peakBytes = 0;
  let hasEnded = false;
  const ended = run.done.finally(() => {
    hasEnded = true;
  });
  // The kernel keeps the maximum itself: only what grows in the last moments before the end can be missed.
  while (!hasEnded) {
    peakBytes = Math.max(peakBytes, peakResident(run.child.pid));
    await Promise.race([ended, sleep(3)]);
  }
  const result = await ended;
  if (result.status !== 0) throw new Error(`mapram ${args.join(' ')}: ${result.stdout}\n${result.stderr}`);
  return { milliseconds: result.milliseconds, peakBytes };
}

function peakResident(pid: number | undefined): number {
  try {
    return (
      Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0) * 1024
    );
  } catch {
    return 0;
  }
}
