import { asMapramError } from '../errors.ts';
import { parseArguments } from './arguments.ts';
import { runCommand } from './commands.ts';
import { exitStatus, failureReport, failureText } from './failure.ts';
import { type SignalSource, watchInterruption } from './signals.ts';
import { processTerminal, type Terminal } from './terminal.ts';

/** Runs the command line in this process and sets its exit status. */
export async function main(argv: readonly string[]): Promise<void> {
  // Whether stdout takes a result, its writer hears; without a listener the stream's error would end the process.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  const signals: SignalSource = {
    on: (name, listener) => process.on(name, listener),
    off: (name, listener) => process.off(name, listener),
    exit: (status) => process.exit(status),
  };
  process.exitCode = await run(argv, processTerminal(), signals);
}

/** Runs one command line to its end and returns its exit status. Throws nothing. */
export async function run(
  argv: readonly string[],
  terminal: Terminal,
  signals: SignalSource,
): Promise<number> {
  const json = argv.includes('--json');
  const interruption = watchInterruption(signals, () => {
    terminal.err('mapram: cancelling; interrupt again to stop at once and leave the guest as it is\n');
  });
  try {
    const result = await runCommand(parseArguments(argv), terminal, interruption.signal);
    const text = json && result.report !== undefined ? `${JSON.stringify(result.report)}\n` : result.text;
    return (await isWritten(terminal, text, result.done)) ? result.status : 1;
  } catch (thrown) {
    const error = asMapramError(thrown);
    const isTold = json && (await isWritten(terminal, `${JSON.stringify(failureReport(error))}\n`));
    if (!isTold) terminal.err(failureText(error));
    return exitStatus(error, interruption.status());
  } finally {
    interruption.release();
  }
}

/** Writes a result. Where that fails, stderr says so, and what was `done` all the same. */
async function isWritten(terminal: Terminal, text: string, done?: string): Promise<boolean> {
  try {
    await terminal.out(text);
    return true;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    const yet = done === undefined ? '' : `, but ${done}`;
    terminal.err(`mapram: the result cannot be written (${reason})${yet}\n`);
    return false;
  }
}
