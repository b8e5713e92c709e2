import { parseArguments } from './arguments.ts';
import { runCommand } from './commands.ts';
import { asMapramError, exitStatus, failureReport, failureText } from './failure.ts';
import { type SignalSource, watchInterruption } from './signals.ts';

/** The streams that the command line writes to; tests pass their own. */
export interface Terminal {
  /** Writes a result. */
  out(text: string): void;
  /** Writes progress, notices and errors. */
  err(text: string): void;
  /** Whether stderr is a terminal. */
  isTerminal: boolean;
  /** Width of stderr in characters. */
  columns(): number;
  /** Milliseconds of a clock that never goes back. */
  now(): number;
}

/** Runs the command line in this process and sets its exit status. */
export async function main(argv: readonly string[]): Promise<void> {
  ignoreClosedPipe(process.stdout);
  ignoreClosedPipe(process.stderr);
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
    terminal.out(json && result.report !== undefined ? `${JSON.stringify(result.report)}\n` : result.text);
    return result.status;
  } catch (thrown) {
    const error = asMapramError(thrown);
    if (json) terminal.out(`${JSON.stringify(failureReport(error))}\n`);
    else terminal.err(failureText(error));
    return exitStatus(error, interruption.status());
  } finally {
    interruption.release();
  }
}

function processTerminal(): Terminal {
  return {
    out: (text) => void process.stdout.write(text),
    err: (text) => void process.stderr.write(text),
    isTerminal: process.stderr.isTTY === true,
    columns: () => process.stderr.columns ?? 80,
    now: () => performance.now(),
  };
}

/** A reader that has gone away (`mapram inspect x | head -1`) is no failure; any other error of a stream is. */
function ignoreClosedPipe(stream: NodeJS.WriteStream): void {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    process.exitCode = 1;
    if (stream === process.stdout)
      process.stderr.write(`mapram: the result cannot be written: ${error.message}\n`);
  });
}
