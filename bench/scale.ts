import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Cleanup } from '../test/support/cleanup.ts';
import { start } from '../test/support/cli.ts';
import { checkImage } from './check-image.ts';
import { checkMemory } from './check-memory.ts';
import { emptyFile, type SourceGuest, startGuest, startSourceGuest } from './guests.ts';
import { warmMemoryToFill } from './host-memory.ts';
import { interruption } from './interruption.ts';
import { median } from './statistics.ts';
import { withCleanup } from './with-cleanup.ts';
import { makeWorkload, type Workload } from './workload.ts';

/** What a guest costs whose RAM is 256 times its data, against one of the same data and nothing else. */
export interface Scale {
  /** Time of the huge guest over that of the dense one, formed within rounds. */
  saveRatio: number;
  inspectRatio: number;
  restoreRatio: number;
  /** Most memory that mapram had resident for the huge guest, of all its commands. */
  peakBytes: number;
  /** Every round's figures. */
  rounds: Record<GuestName, Figures>[];
}

/** Whole commands: planning, and reading the image's bitmap, are what the size of a guest could make slow. */
interface Figures {
  saveMilliseconds: number;
  restoreMilliseconds: number;
  inspectMilliseconds: number;
  peakBytes: number;
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
  const imageOf = (name: GuestName) => join(directory, name);
  const saves = await withCleanup(async (own) => {
    const guests = {
      dense: await startSourceGuest(workloads.dense, own),
      huge: await startSourceGuest(workloads.huge, own),
    };
    const saveOne = (name: GuestName) => measureSave(workloads[name], guests[name], imageOf(name));
    return inTurns(rounds, saveOne, (text) => say(`scale, saves, ${text}`));
  });
  const restoreOne = (name: GuestName) => measureRestore(workloads[name], imageOf(name));
  const restores = await inTurns(rounds, restoreOne, (text) => say(`scale, restores, ${text}`));
  const figures = saves.map((saved, round) => {
    const restored = restores[round] as Record<GuestName, Run>;
    return { dense: joined(saved.dense, restored.dense), huge: joined(saved.huge, restored.huge) };
  });
  const ratio = (figure: keyof Figures) =>
    median(figures.map(({ huge, dense }) => huge[figure] / dense[figure]));
  return {
    saveRatio: ratio('saveMilliseconds'),
    inspectRatio: ratio('inspectMilliseconds'),
    restoreRatio: ratio('restoreMilliseconds'),
    peakBytes: Math.max(...figures.map((round) => round.huge.peakBytes)),
    rounds: figures,
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

interface Saves {
  save: Run;
  inspect: Run;
}

async function measureSave(workload: Workload, { qemu }: SourceGuest, image: string): Promise<Saves> {
  rmSync(image, { force: true });
  const save = await runWithPeak(['save', '--qmp', qemu.socket, image]);
  await checkImage(workload, qemu, image);
  return { save, inspect: await runWithPeak(['inspect', image]) };
}

function measureRestore(workload: Workload, image: string): Promise<Run> {
  return withCleanup(async (cleanup) => {
    const memoryFile = emptyFile(workload, cleanup);
    const waiting = await startGuest(workload, memoryFile, true, cleanup);
    await waiting.qmp.waitForStatus('inmigrate');
    await warmMemoryToFill(workload);
    const run = await runWithPeak(['restore', '--then', 'pause', '--qmp', waiting.socket, image]);
    checkMemory(workload, memoryFile, 0);
    return run;
  });
}

function joined({ save, inspect }: Saves, restore: Run): Figures {
  return {
    saveMilliseconds: save.milliseconds,
    inspectMilliseconds: inspect.milliseconds,
    restoreMilliseconds: restore.milliseconds,
    peakBytes: Math.max(save.peakBytes, inspect.peakBytes, restore.peakBytes),
  };
}

/** A command's time, and the most memory that it had resident. */
interface Run {
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
