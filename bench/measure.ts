import { mkdirSync } from 'node:fs';
import type { Cleanup } from '../test/support/cleanup.ts';
import { FAST_STANDIN } from './arguments.ts';
import { fastStandin } from './fast-standin.ts';
import { describeDisk, describeHost } from './host.ts';
import { collectResults, type Results } from './report.ts';
import { writeResults } from './results.ts';
import { bytesOnDisk, runSession, type SessionPlan } from './session.ts';
import { needTools } from './tools.ts';
import { withCleanup } from './with-cleanup.ts';

/** Tells how the bench goes on, beside its results on stdout. */
export function say(text: string): void {
  process.stderr.write(`bench: ${text}\n`);
}

/** Runs a session on the disk that `dir` names, and writes its report. */
export function measure(plan: SessionPlan, dir: string, resultsDirectory: string): Promise<Results> {
  return withCleanup(async (cleanup) => {
    // Before the host is described: the versions of tools belong to it.
    if (plan.against.includes('fio')) needTools(['fio'], say);
    const directory = diskFor(dir, bytesOnDisk(plan), cleanup);
    const disk = describeDisk(directory);
    const results = collectResults(describeHost(), disk, await runSession(plan, directory, say));
    const label = dir === FAST_STANDIN ? FAST_STANDIN : disk.fileSystem;
    say(`the report is ${writeResults(resultsDirectory, label, results)}`);
    return results;
  });
}

/** The directory that `dir` names, made where there is none; the fast stand-in gets room for images of `bytes`. */
export function diskFor(dir: string, bytes: number, cleanup: Cleanup): string {
  if (dir === FAST_STANDIN) return fastStandin(bytes, cleanup, say);
  mkdirSync(dir, { recursive: true });
  return dir;
}
