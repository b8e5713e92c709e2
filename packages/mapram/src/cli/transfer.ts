import { MapramError } from '../errors.ts';
import type { JobPromise, Progress } from '../job.ts';
import type { RestoreArguments, SaveArguments, TransferArguments } from './arguments.ts';
import { ProgressLine } from './progress.ts';
import { describeRestore, describeSave } from './results.ts';
import type { Terminal } from './terminal.ts';

/** A finished transfer: its report for programs and for people. */
interface Transferred {
  report: object;
  text: string;
}

/** What the library takes of a command's options. */
function settingsOf<T extends TransferArguments>(options: T) {
  const { qmp, pid, json, quiet, progress, ...settings } = options;
  return { ...settings, guest: { qmp, pid } };
}

/** Runs `mapram save`. */
export async function runSave(
  image: string,
  options: SaveArguments,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<Transferred> {
  const { save } = await import('../save.ts');
  const job = save({ ...settingsOf(options), image, signal });
  await showProgress('saving', job.progress, options, terminal);
  const report = await reportOf(job);
  return { report, text: describeSave(report) };
}

/** Runs `mapram restore`. */
export async function runRestore(
  image: string,
  options: RestoreArguments,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<Transferred> {
  const { restore } = await import('../restore.ts');
  const job = restore({ ...settingsOf(options), image, signal });
  await showProgress('restoring', job.progress, options, terminal);
  const report = await reportOf(job);
  return { report, text: describeRestore(report) };
}

/** The job's report; or its failure, which for us says how the guest was left even where it is the signal's reason. */
async function reportOf<T>(job: JobPromise<T>): Promise<T> {
  try {
    return await job;
  } catch (error) {
    const { guestState } = job;
    throw error instanceof MapramError && guestState !== undefined ? error.leaving(guestState) : error;
  }
}

/** Draws until the job has settled; the iterable ends then and never throws. What is to be done is unknown at first. */
async function showProgress(
  verb: string,
  progress: AsyncIterable<Progress>,
  options: TransferArguments,
  terminal: Terminal,
): Promise<void> {
  const isWanted = options.quiet !== true && (terminal.isTerminal || options.progress === true);
  const screen = { write: terminal.err, isTerminal: terminal.isTerminal, columns: terminal.columns };
  const line = new ProgressLine(verb, screen, terminal.now);
  let told: string | undefined;
  for await (const sample of progress) {
    const { notice } = sample;
    if (notice !== undefined && notice !== told) {
      line.finish();
      terminal.err(`mapram: ${notice}\n`);
    }
    told = notice;
    if (isWanted && sample.bytesTotal > 0) line.update(sample);
  }
  line.finish();
}
