import { execFileSync } from 'node:child_process';
import { statfsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { isCeiling } from './disk.ts';
import { interruption } from './interruption.ts';
import type { Contender, Run } from './measurement.ts';

/**
 * Runs every contender once a round, so that a slow or fast minute of the machine meets all of them. Before the first round each
 * type runs once to warm up: memory, caches and the disk's allocation maps.
 *
 * @param directory its file system is synced before each run, so that nobody pays for what the one before left behind.
 */
export async function runRounds(
  contenders: Contender[],
  rounds: number,
  directory: string,
  say: (text: string) => void,
): Promise<Run[]> {
  const runs: Run[] = [];
  let free = freeBytes(directory);
  for (let round = 0; round <= rounds; round++) {
    for (const contender of round === 0 ? warmUpOf(contenders) : orderOf(contenders, round)) {
      interruption.throwIfAborted();
      free = await settle(directory, free);
      const run = await runOnce(contender, round);
      runs.push(run);
      say(describe(run, rounds));
    }
  }
  interruption.throwIfAborted();
  return runs;
}

/** The first contender of each type; fio's shapes warm up as one, for its ceiling is a matter of its best run. */
export function warmUpOf(contenders: Contender[]): Contender[] {
  const ways = contenders.map(({ type }) => (isCeiling(type) ? 'ceiling' : type));
  return contenders.filter((_, index) => ways.indexOf(ways[index] as string) === index);
}

/**
 * Writes out what the run before left behind, and waits for the space of its image: XFS gives that back in the background, which
 * takes seconds where QEMU has torn a file into a hundred thousand extents.
 *
 * @param free bytes that were free before the run.
 * @returns bytes that are free now: what did not come back in half a minute, somebody else has taken.
 */
async function settle(directory: string, free: number): Promise<number> {
  for (let tries = 0; tries < 300; tries++) {
    execFileSync('sync', ['--file-system', directory]);
    if (freeBytes(directory) >= free - SPARE_BYTES) return free;
    await sleep(100);
  }
  return freeBytes(directory);
}

/** What others may take of the disk meanwhile without being waited for. */
const SPARE_BYTES = 64 << 20;

function freeBytes(directory: string): number {
  const { bavail, bsize } = statfsSync(directory);
  return bavail * bsize;
}

/**
 * Those with the same channel count next to each other. Each round begins with another one, and every other round runs backwards:
 * what a run leaves behind, above all which memory is at hand, shall not always meet the same neighbour.
 */
export function orderOf<T extends { channels?: number }>(contenders: T[], round: number): T[] {
  const sorted = contenders.toSorted((a, b) => (a.channels ?? 0) - (b.channels ?? 0));
  const first = (2 * round) % Math.max(sorted.length, 1);
  const turned = [...sorted.slice(first), ...sorted.slice(0, first)];
  return round % 2 === 1 ? turned : turned.toReversed();
}

async function runOnce({ type, channels, run }: Contender, round: number): Promise<Run> {
  const label = { type, ...(channels === undefined ? {} : { channels }), round };
  try {
    return { ...label, measurement: await run() };
  } catch (error) {
    return { ...label, voided: (error as Error).message };
  }
}

function describe({ type, channels, round, measurement, voided }: Run, rounds: number): string {
  const when = round === 0 ? 'warm-up' : `round ${round} of ${rounds}`;
  const what = `${type}${channels === undefined ? '' : `, ${channels} channels`}`;
  return `${when}: ${what}: ${measurement === undefined ? `VOID: ${voided}` : `${measurement.milliseconds.toFixed(0)} ms`}`;
}
