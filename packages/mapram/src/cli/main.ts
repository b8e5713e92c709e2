import { asMapramError, messageOf } from '../errors.ts';
import { type Invocation, parseArguments } from './arguments.ts';
import { runCommand } from './commands.ts';
import { exitStatus, failureReport, failureText } from './failure.ts';
import { type SignalSource, watchInterruption } from './signals.ts';
import { processTerminal, type Terminal } from './terminal.ts';

/** What was cancelled while the kernel kept a call is over, but the process ends only after that call, and may have to tidy up then. */
const LINGERING_MS = 10_000;
const LINGERING =
  'mapram: the storage has not answered for 10 s; this process ends when it does, or by one more interrupt\n';

/** Runs the command line in this process and sets its exit status. */
export async function main(argv: readonly string[]): Promise<void> {
  // Whether stdout takes a result, its writer hears; without a listener the stream's error would end the process.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  const terminal = processTerminal();
  process.exitCode = await run(argv, terminal, process);
  setTimeout(() => terminal.err(LINGERING), LINGERING_MS).unref();
}

/** Runs one command line to its end and returns its exit status. Throws nothing. */
export async function run(
  argv: readonly string[],
  terminal: Terminal,
  signals: SignalSource,
): Promise<number> {
  const json = argv.includes('--json');
  let command: Invocation['command'] = 'text';
  const interruption = watchInterruption(signals, {
    first: () =>
      terminal.err('mapram: cancelling; interrupt again to stop at once and leave the guest as it is\n'),
    second: () => terminal.err(STOPPED_AT_ONCE[command] ?? ''),
  });
  try {
    const invocation = parseArguments(argv);
    command = invocation.command;
    const result = await runCommand(invocation, terminal, interruption.signal);
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

/** What a command may leave that a second signal ends. */
const STOPPED_AT_ONCE: { [command in Invocation['command']]?: string } = {
  save: 'mapram: stopped at once; the guest may be paused (the QMP command cont resumes it; not if the image is in its place), and a .partial file may be left\n',
  restore: 'mapram: stopped at once; the QEMU that was to be restored may hold half a guest: start it anew\n',
};

/** Writes a result. Where that fails, stderr says so, and what was `done` all the same. */
async function isWritten(terminal: Terminal, text: string, done?: string): Promise<boolean> {
  try {
    await terminal.out(text);
    return true;
  } catch (error) {
    const yet = done === undefined ? '' : `, but ${done}`;
    terminal.err(`mapram: the result cannot be written (${messageOf(error)})${yet}\n`);
    return false;
  }
}
