import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Cleanup } from '../test/support/cleanup.ts';
import { start } from '../test/support/cli.ts';
import { checkImage } from './check-image.ts';
import { checkMemory } from './check-memory.ts';
import { emptyFile, type SourceGuest, startGuest, startSourceGuest } from './guests.ts';
import { warmHostMemory } from './host-memory.ts';
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
  rounds: Record<'dense' | 'huge', Figures>[];
}

/** Whole commands: planning, and reading the image's bitmap, are what the size of a guest could make slow. */
interface Figures {
  saveMilliseconds: number;
  restoreMilliseconds: number;
  inspectMilliseconds: number;
  peakBytes: number;
}

/** Saves, inspects and restores a guest with `dataBytes` in 256 times as much RAM and a dense one of `dataBytes`, in turns. */
export async function measureScale(
  dataBytes: number,
  rounds: number,
  parent: string,
  cleanup: Cleanup,
  say: (text: string) => void,
): Promise<Scale> {
  const directory = mkdtempSync(join(parent, 'mapram-bench-'));
  cleanup.add(() => rmSync(directory, { recursive: true, force: true }));
  const [dense, huge] = [makeWorkload('dense', dataBytes), makeWorkload('huge', 256 * dataBytes)];
  const guests = {
    dense: await startSourceGuest(dense, cleanup),
    huge: await startSourceGuest(huge, cleanup),
  };
  const figures: Scale['rounds'] = [];
  for (let round = 0; round <= rounds; round++) {
    interruption.throwIfAborted();
    const measureDense = () => measureOne(dense, guests.dense, directory);
    const first = round % 2 === 0 ? await measureDense() : undefined;
    const ofHuge = await measureOne(huge, guests.huge, directory);
    const pair = { dense: first ?? (await measureDense()), huge: ofHuge };
    say(`scale, round ${round} of ${rounds}: ${JSON.stringify(pair)}`);
    // The first round warms up.
    if (round > 0) figures.push(pair);
  }
  const ratio = (figure: keyof Figures) =>
    median(figures.map(({ huge: ofHuge, dense: ofDense }) => ofHuge[figure] / ofDense[figure]));
  return {
    saveRatio: ratio('saveMilliseconds'),
    inspectRatio: ratio('inspectMilliseconds'),
    restoreRatio: ratio('restoreMilliseconds'),
    peakBytes: Math.max(...figures.map((round) => round.huge.peakBytes)),
    rounds: figures,
  };
}

function measureOne(workload: Workload, { qemu }: SourceGuest, directory: string): Promise<Figures> {
  return withCleanup(async (cleanup) => {
    const image = join(directory, 'image');
    cleanup.add(() => rmSync(image, { force: true }));
    const saved = await runWithPeak(['save', '--qmp', qemu.socket, image]);
    await checkImage(workload, qemu, image);
    const inspected = await runWithPeak(['inspect', image]);
    const memoryFile = emptyFile(workload, cleanup);
    const waiting = await startGuest(workload, memoryFile, true, cleanup);
    await waiting.qmp.waitForStatus('inmigrate');
    await warmHostMemory(workload.dataBytes);
    const restored = await runWithPeak(['restore', '--then', 'pause', '--qmp', waiting.socket, image]);
    checkMemory(workload, memoryFile, 0);
    return {
      saveMilliseconds: saved.milliseconds,
      restoreMilliseconds: restored.milliseconds,
      inspectMilliseconds: inspected.milliseconds,
      peakBytes: Math.max(saved.peakBytes, inspected.peakBytes, restored.peakBytes),
    };
  });
}

/** Runs mapram and watches the most memory that it ever had resident. */
async function runWithPeak(args: string[]): Promise<{ milliseconds: number; peakBytes: number }> {
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
