import { readFileSync } from 'node:fs';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { COPIES, type Copy, ENGINES, type Engine } from '../choices.ts';
import { MapramError } from '../errors.ts';

/** What both transfers take from the command line. */
export interface TransferArguments {
  qmp: string;
  channels?: number;
  queueDepth?: number;
  engine: Engine;
  direct: boolean;
  copy: Copy;
  pid?: number;
  json?: true;
  quiet?: true;
  progress?: true;
}

/** Options of `mapram save`. */
export interface SaveArguments extends TransferArguments {
  then: 'pause' | 'resume' | 'quit';
  force?: true;
}

/** Options of `mapram restore`. */
export interface RestoreArguments extends TransferArguments {
  then?: 'pause' | 'resume';
  method: 'auto' | 'fill' | 'qemu';
  offset?: number;
}

/** Options of `mapram inspect`. */
export interface InspectArguments {
  offset?: number;
  json?: true;
}

/** Options of `mapram doctor`. */
export interface DoctorArguments {
  dir?: string;
  qmp?: string;
  pid?: number;
  json?: true;
}

/** One parsed command line. */
export type Invocation =
  | { command: 'save'; image: string; options: SaveArguments }
  | { command: 'restore'; image: string; options: RestoreArguments }
  | { command: 'inspect'; image: string; options: InspectArguments }
  | { command: 'doctor'; options: DoctorArguments }
  | { command: 'text'; text: string };

/**
 * Parses the arguments that follow the program's name.
 *
 * @throws {MapramError} E_USAGE for anything that is not understood in full.
 */
export function parseArguments(argv: readonly string[]): Invocation {
  let invocation: Invocation | undefined;
  let text = '';
  const program = describeProgram((parsed) => {
    invocation = parsed;
  });
  program.configureOutput({ writeOut: (part) => (text += part), writeErr: () => {} });
  for (const command of program.commands) refuseRepetition(command.copyInheritedSettings(program));
  try {
    program.parse(argv, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { command: 'text', text };
    throw usageError(error);
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

function describeProgram(found: (invocation: Invocation) => void): Command {
  const program = new Command('mapram')
    .description("Save and restore the RAM of large QEMU guests in QEMU's mapped-ram format.")
    .version(readVersion())
    .exitOverride();
  describeSave(program, found);
  describeRestore(program, found);
  describeInspect(program, found);
  describeDoctor(program, found);
  return program;
}

function describeSave(program: Command, found: (invocation: Invocation) => void): void {
  const command = program
    .command('save')
    .description("write a guest's RAM and device state to one image file")
    .argument('<image>', 'file to create; it appears whole or not at all');
  addTransferOptions(command)
    .addOption(
      new Option('--then <state>', 'what the guest does after success')
        .choices(['pause', 'resume', 'quit'])
        .default('pause'),
    )
    .option('--force', 'replace the image if it exists')
    .action((image: string, options: SaveArguments) => found({ command: 'save', image, options }));
}

function describeRestore(program: Command, found: (invocation: Invocation) => void): void {
  const command = program
    .command('restore')
    .description('bring an image back into a QEMU that was started with -incoming defer')
    .argument('<image>', 'image written by mapram or by QEMU with mapped-ram');
  addTransferOptions(command)
    .addOption(
      new Option('--then <state>', 'what the guest does after success (default: as the image says)').choices([
        'pause',
        'resume',
      ]),
    )
    .addOption(
      new Option('--method <name>', 'fill: put RAM in place from outside; qemu: its own loader')
        .choices(['auto', 'fill', 'qemu'])
        .default('auto'),
    )
    .addOption(offsetOption())
    .action((image: string, options: RestoreArguments) => found({ command: 'restore', image, options }));
}

function describeInspect(program: Command, found: (invocation: Invocation) => void): void {
  program
    .command('inspect')
    .description('check an image and say what is in it')
    .argument('<image>', 'image written by mapram or by QEMU with mapped-ram')
    .addOption(offsetOption())
    .option('--json', 'print one JSON object')
    .action((image: string, options: InspectArguments) => found({ command: 'inspect', image, options }));
}

function describeDoctor(program: Command, found: (invocation: Invocation) => void): void {
  program
    .command('doctor')
    .description('say what works on this host, and what to do about what does not')
    .option('--dir <directory>', 'directory that images are to be written to')
    .option('--qmp <socket>', 'QMP socket of a guest that is to be saved; it is not changed')
    .option('--pid <number>', "process of the guest's QEMU (default: found by QMP)", parsePid)
    .option('--json', 'print one JSON object')
    .action((options: DoctorArguments) => found({ command: 'doctor', options }));
}

function addTransferOptions(command: Command): Command {
  return command
    .requiredOption('--qmp <socket>', "the guest's QMP socket")
    .option('--channels <number>', 'parallel streams of the image, 1 to 128 (default: 8)', parseChannels)
    .option(
      '--queue-depth <number>',
      'requests in flight on each thread, 1 to 256 (default: 4)',
      parseQueueDepth,
    )
    .addOption(
      new Option('--engine <name>', 'how the image is read and written').choices(ENGINES).default('auto'),
    )
    .option('--no-direct', 'go through the page cache, for file systems without direct I/O')
    .addOption(
      new Option('--copy <when>', 'whether pages go through buffers').choices(COPIES).default('auto'),
    )
    .option('--pid <number>', "process of the guest's QEMU (default: found by QMP)", parsePid)
    .option('--json', 'print one JSON object')
    .option('--progress', 'report progress on stderr also where it is no terminal')
    .addOption(new Option('--quiet', 'report no progress').conflicts('progress'));
}

function offsetOption(): Option {
  return new Option(
    '--offset <bytes>',
    'where the image begins in the file; decimal or 0x hexadecimal',
  ).argParser(parseOffset);
}

function parseChannels(value: string): number {
  return parseCount(value, 128);
}

function parseQueueDepth(value: string): number {
  return parseCount(value, 256);
}

function parsePid(value: string): number {
  return parseCount(value, 0x7fffffff);
}

/** A decimal integer from 1 to `max` and nothing else: '8x', '1e3' and '' are errors. */
function parseCount(value: string, max: number): number {
  const count = /^[0-9]+$/.test(value) ? Number(value) : 0;
  if (count >= 1 && count <= max) return count;
  throw new InvalidArgumentError(`It must be a whole number from 1 to ${max}.`);
}

function parseOffset(value: string): number {
  const offset = /^(?:[0-9]+|0x[0-9a-f]+)$/i.test(value) ? Number(value) : -1;
  if (!Number.isSafeInteger(offset) || offset < 0) {
    throw new InvalidArgumentError('It must be a number of bytes, decimal or 0x hexadecimal.');
  }
  return offset;
}

function readVersion(): string {
  // Two folders up from here as well as from the bundle.
  const manifest = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(manifest) as { version: string }).version;
}
