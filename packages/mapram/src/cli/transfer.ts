import { MapramError } from '../errors.ts';
import type { JobPromise } from '../job.ts';
import type { Invocation, TransferArguments } from './arguments.ts';
import { type CommandResult, succeeded } from './outcome.ts';
import { ProgressLine } from './progress.ts';
import { describeRestore, describeSave } from './results.ts';
import type { Terminal } from './terminal.ts';

/** What the library takes of a command's options. */
function settingsOf<T extends TransferArguments>(options: T) {
  const { qmp, pid, json, quiet, progress, ...settings } = options;
  return { ...settings, guest: { qmp, pid } };
}

/** Runs `mapram save`. */
export async function runSave(
  { image, options }: Extract<Invocation, { command: 'save' }>,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<CommandResult> {
  const { save } = await import('../save.ts');
  return attend(save({ ...settingsOf(options), image, signal }), 'saving', describeSave, options, terminal);
}

/** Runs `mapram restore`. */
export async function runRestore(
  { image, options }: Extract<Invocation, { command: 'restore' }>,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<CommandResult> {
  const { restore } = await import('../restore.ts');
  const job = restore({ ...settingsOf(options), image, signal });
  return attend(job, 'restoring', describeRestore, options, terminal);
}

/**
 * Draws a job's progress until it has settled, and returns its result. Its failure says for us how the guest was left also where it
 * is the signal's reason.
 */
async function attend<T extends object>(
  job: JobPromise<T>,
  verb: string,
  describe: (report: T) => string,
  { quiet, progress }: TransferArguments,
  terminal: Terminal,
): Promise<CommandResult> {
  const isWanted = quiet !== true && (terminal.isTerminal || progress === true);
  const line = new ProgressLine(verb, terminal);
  let told: string | undefined;
  // The iterable ends when the job has settled and never throws. What is to be done is unknown at first.
  for await (const sample of job.progress) {
    const { notice } = sample;
    if (notice !== undefined && notice !== told) {
      line.finish();
      terminal.err(`mapram: ${notice}\n`);
    }
    told = notice;
    if (isWanted && sample.bytesTotal > 0) line.update(sample);
  }
  line.finish();
  try {
    const report = await job;
    return succeeded(report, describe(report));
  } catch (error) {
    const { guestState } = job;
    throw error instanceof MapramError && guestState !== undefined ? error.leaving(guestState) : error;
  }
}
