import { readFileSync } from 'node:fs';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { COPIES, ENGINES } from '../choices.ts';
import type { DoctorOptions } from '../doctor.ts';
import { MapramError } from '../errors.ts';
import type { InspectOptions } from '../inspect.ts';
import type { GuestRestoreOptions, GuestSaveOptions, TransferOptions } from '../options.ts';

/** What both transfers take from the command line besides the options of the library. */
export interface TransferArguments extends Omit<TransferOptions, 'image' | 'signal'> {
  qmp: string;
  pid?: number;
  json?: true;
  quiet?: true;
  progress?: true;
}

/** Options of `mapram save`. */
export type SaveArguments = TransferArguments & Pick<GuestSaveOptions, 'then' | 'force'>;
/** Options of `mapram restore`. */
export type RestoreArguments = TransferArguments & Pick<GuestRestoreOptions, 'then' | 'method' | 'offset'>;

/** One parsed command line. */
export type Invocation =
  | { command: 'save'; image: string; options: SaveArguments }
  | { command: 'restore'; image: string; options: RestoreArguments }
  | { command: 'inspect'; image: string; options: InspectOptions & { json?: true } }
  | { command: 'doctor'; options: DoctorOptions & { json?: true } }
  | { command: 'text'; text: string };

/**
 * Parses the arguments that follow the program's name.
 *
 * @throws {MapramError} E_USAGE for anything that is not understood in full.
 */
export function parseArguments(argv: readonly string[]): Invocation {
  let text = '';
  const program = describeProgram().configureOutput({
    writeOut: (part) => (text += part),
    writeErr: () => {},
  });
  let invocation: Invocation | undefined;
  for (const command of program.commands) {
    refuseRepetition(command.copyInheritedSettings(program));
    command.action(() => {
      const [image] = command.args;
      invocation = { command: command.name(), image, options: command.opts() } as Invocation;
    });
  }
  try {
    program.parse(argv, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode !== 0) throw usageError(error);
  }
  return invocation ?? { command: 'text', text };
}

/** Of several values the last one would win silently, though its author can have meant only one. */
function refuseRepetition(command: Command): void {
  for (const option of command.options.filter(({ required }) => required)) {
    let isGiven = false;
    command.on(`option:${option.name()}`, () => {
      if (isGiven) throw new MapramError('E_USAGE', `option '${option.flags}' is given more than once`);
      isGiven = true;
    });
  }
}

function usageError(error: CommanderError): MapramError {
  if (error.code === 'commander.help') return new MapramError('E_USAGE', 'a command is missing; see --help');
  const message = error.message.replace(/^error: /, '').replaceAll(/\s*\n\s*/g, ' ');
  return new MapramError('E_USAGE', message);
}

function describeProgram(): Command {
  return new Command('mapram')
    .description("Save and restore the RAM of large QEMU guests in QEMU's mapped-ram format.")
    .version(readVersion())
    .exitOverride()
    .addCommand(describeSave())
    .addCommand(describeRestore())
    .addCommand(describeInspect())
    .addCommand(describeDoctor());
}

function describeSave(): Command {
  return describeTransfer('save')
    .description("write a guest's RAM and device state to one image file")
    .argument('<image>', 'file to create; it appears whole or not at all')
    .addOption(
      choice('--then <state>', 'what the guest does after success', ['pause', 'resume', 'quit'], 'pause'),
    )
    .option('--force', 'replace the image if it exists');
}

function describeRestore(): Command {
  const then = 'what the guest does after success (default: as the image says)';
  const method = 'fill: put RAM in place from outside; qemu: its own loader';
  return describeTransfer('restore')
    .description('bring an image back into a QEMU that was started with -incoming defer')
    .argument('<image>', 'image written by mapram or by QEMU with mapped-ram')
    .addOption(choice('--then <state>', then, ['pause', 'resume']))
    .addOption(choice('--method <name>', method, ['auto', 'fill', 'qemu'], 'auto'))
    .addOption(offsetOption());
}

function describeInspect(): Command {
  return new Command('inspect')
    .description('check an image and say what is in it')
    .argument('<image>', 'image written by mapram or by QEMU with mapped-ram')
    .addOption(offsetOption())
    .option('--json', 'print one JSON object');
}

function describeDoctor(): Command {
  return new Command('doctor')
    .description('say what works on this host, and what to do about what does not')
    .option('--dir <directory>', 'directory that images are to be written to')
    .option('--qmp <socket>', 'QMP socket of a guest that is to be saved; it is not changed')
    .addOption(pidOption())
    .option('--json', 'print one JSON object');
}

/** A command with the options that both transfers have. */
function describeTransfer(name: string): Command {
  const channels = 'parallel streams of the image, 1 to 128 (default: 8)';
  const queueDepth = 'requests in flight on each thread, 1 to 256 (default: 4)';
  return new Command(name)
    .requiredOption('--qmp <socket>', "the guest's QMP socket")
    .option('--channels <number>', channels, countTo(128))
    .option('--queue-depth <number>', queueDepth, countTo(256))
    .addOption(choice('--engine <name>', 'how the image is read and written', ENGINES, 'auto'))
    .option('--no-direct', 'go through the page cache, for file systems without direct I/O')
    .addOption(choice('--copy <when>', 'whether pages go through buffers', COPIES, 'auto'))
    .addOption(pidOption())
    .option('--json', 'print one JSON object')
    .option('--progress', 'report progress on stderr also where it is no terminal')
    .addOption(new Option('--quiet', 'report no progress').conflicts('progress'));
}

function choice(flags: string, description: string, words: readonly string[], byDefault?: string): Option {
  return new Option(flags, description).choices(words).default(byDefault);
}

function pidOption(): Option {
  const description = "process of the guest's QEMU (default: found by QMP)";
  return new Option('--pid <number>', description).argParser(countTo(0x7fffffff));
}

function offsetOption(): Option {
  const description = 'where the image begins in the file; decimal or 0x hexadecimal';
  return new Option('--offset <bytes>', description).argParser(parseOffset);
}

/** Takes a decimal integer from 1 to `max` and nothing else: '8x', '1e3' and '' are errors. */
function countTo(max: number): (value: string) => number {
  return (value) => {
    const count = /^[0-9]+$/.test(value) ? Number(value) : 0;
    if (count >= 1 && count <= max) return count;
    throw new InvalidArgumentError(`It must be a whole number from 1 to ${max}.`);
  };
}

function parseOffset(value: string): number {
  const offset = /^(?:[0-9]+|0x[0-9a-f]+)$/i.test(value) ? Number(value) : -1;
  if (Number.isSafeInteger(offset) && offset >= 0) return offset;
  throw new InvalidArgumentError('It must be a number of bytes, decimal or 0x hexadecimal.');
}

function readVersion(): string {
  // Two folders up from here as well as from the bundle.
  const manifest = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(manifest) as { version: string }).version;
}
