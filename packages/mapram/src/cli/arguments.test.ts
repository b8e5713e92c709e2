import { describe, expect, it } from 'vitest';
import { MapramError } from '../errors.ts';
import { parseArguments } from './arguments.ts';

const save = (...rest: string[]): string[] => ['save', '--qmp', 'q.sock', ...rest, 'vm.mapram'];
const restore = (...rest: string[]): string[] => ['restore', '--qmp', 'q.sock', ...rest, 'vm.mapram'];

describe('what is understood', () => {
  it('has a default for everything but the socket and the image', () => {
    expect(parseArguments(save())).toEqual({
      command: 'save',
      image: 'vm.mapram',
      options: { qmp: 'q.sock', engine: 'auto', direct: true, copy: 'auto', then: 'pause' },
    });
    expect(parseArguments(restore())).toEqual({
      command: 'restore',
      image: 'vm.mapram',
      options: { qmp: 'q.sock', engine: 'auto', direct: true, copy: 'auto', method: 'auto' },
    });
    expect(parseArguments(['doctor'])).toEqual({ command: 'doctor', options: {} });
  });

  it('takes every option of save', () => {
    const argv = save(
      '--channels',
      '128',
      '--queue-depth',
      '16',
      '--engine',
      'blocking',
      '--no-direct',
      '--pid',
      '77',
      '--then',
      'quit',
      '--force',
      '--json',
      '--quiet',
    );
    expect(parseArguments(argv)).toMatchObject({
      options: {
        channels: 128,
        queueDepth: 16,
        engine: 'blocking',
        direct: false,
        pid: 77,
        then: 'quit',
        force: true,
        json: true,
        quiet: true,
      },
    });
  });

  it('takes every option of restore', () => {
    const argv = restore(
      '--channels=1',
      '--queue-depth=1',
      '--engine=tokio-uring',
      '--then=resume',
      '--method=fill',
      '--offset=0x11921',
      '--progress',
    );
    expect(parseArguments(argv)).toMatchObject({
      options: {
        channels: 1,
        queueDepth: 1,
        engine: 'tokio-uring',
        then: 'resume',
        method: 'fill',
        offset: 0x11921,
        progress: true,
      },
    });
  });

  it('takes the options of inspect and doctor', () => {
    expect(parseArguments(['inspect', '--offset', '512', '--json', 'i'])).toEqual({
      command: 'inspect',
      image: 'i',
      options: { offset: 512, json: true },
    });
    expect(parseArguments(['doctor', '--dir', '/d', '--qmp', 'q', '--pid', '9', '--json'])).toEqual({
      command: 'doctor',
      options: { dir: '/d', qmp: 'q', pid: 9, json: true },
    });
  });

  it('answers --version and --help with text', () => {
    expect(parseArguments(['--version'])).toMatchObject({
      command: 'text',
      text: expect.stringMatching(/^\d/),
    });
    expect(parseArguments(['--help'])).toMatchObject({ text: expect.stringContaining('doctor') });
    expect(parseArguments(['save', '--help'])).toMatchObject({
      text: expect.stringContaining('--queue-depth'),
    });
  });
});

describe('what is refused', () => {
  const refused: [name: string, argv: string[], message: RegExp][] = [
    ['no command', [], /command is missing/],
    ['an unknown command', ['svae', 'x'], /unknown command 'svae'.*Did you mean save\?/],
    ['an unknown option', save('--chanels', '8'), /unknown option '--chanels'.*Did you mean --channels\?/],
    ['an option of another command', restore('--force'), /unknown option '--force'/],
    ['a missing socket', ['save', 'vm.mapram'], /--qmp <socket>' not specified/],
    ['a missing image', ['save', '--qmp', 'q'], /missing required argument 'image'/],
    ['a second image', save('other'), /too many arguments/],
    ['a number with a unit', save('--channels', '8x'), /--channels.*'8x' is invalid/],
    ['no channels', save('--channels', '0'), /from 1 to 128/],
    ['too many channels', save('--channels', '129'), /from 1 to 128/],
    ['too deep a queue', save('--queue-depth', '257'), /from 1 to 256/],
    ['a fraction', save('--queue-depth', '1.5'), /--queue-depth.*'1.5' is invalid/],
    ['an exponent', save('--queue-depth', '1e3'), /'1e3' is invalid/],
    ['an empty number', save('--channels', ''), /'' is invalid/],
    ['a negative process', save('--pid=-1'), /'-1' is invalid/],
    ['a process beyond any', save('--pid', '4294967296'), /from 1 to 2147483647/],
    ['an offset with a suffix', restore('--offset', '4K'), /'4K' is invalid/],
    ['an offset beyond exact numbers', restore('--offset', '0x20000000000000'), /is invalid/],
    [
      'an unknown engine',
      save('--engine', 'uring'),
      /Allowed choices are auto, io-uring, tokio-uring, blocking/,
    ],
    ['quit after restore', restore('--then', 'quit'), /Allowed choices are pause, resume/],
    ['two sockets', save('--qmp', 'r.sock'), /option '--qmp <socket>' is given more than once/],
    [
      'two engines',
      save('--engine=auto', '--engine', 'blocking'),
      /--engine <name>' is given more than once/,
    ],
    ['two offsets', restore('--offset', '0', '--offset', '0'), /--offset <bytes>' is given more than once/],
    ['two directories', ['doctor', '--dir', 'a', '--dir', 'b'], /--dir <directory>' is given more than once/],
    ['quiet and progress at once', save('--quiet', '--progress'), /cannot be used with/],
  ];
  it.each(refused)('%s', (_name, argv, message) => {
    let thrown: unknown;
    try {
      parseArguments(argv);
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(MapramError);
    expect(thrown).toMatchObject({ code: 'E_USAGE', message: expect.stringMatching(message) });
  });
});
