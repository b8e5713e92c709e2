import { describe, expect, it } from 'vitest';
import { ENGINES } from './choices.ts';
import { chooseEngine } from './native.ts';
import {
  checkRestoreOptions,
  checkSaveOptions,
  chooseTransfer,
  DEFAULT_LOAD,
  type RestoreOptions,
  type SaveOptions,
} from './options.ts';

const GUEST = { image: '/i', guest: { qmp: '/s' } };
const MEMORY = { image: '/i', machine: 'none', memory: [{ name: 'a', length: 4096, file: '/f' }] };

describe('options of save', () => {
  it('have defaults', () => {
    expect(checkSaveOptions(GUEST)).toEqual({
      ...GUEST,
      channels: 8,
      queueDepth: 4,
      engine: 'auto',
      copy: 'auto',
      direct: true,
      force: false,
      then: 'pause',
    });
    expect(checkSaveOptions(MEMORY)).toMatchObject({ deviceState: Uint8Array.of(0), force: false });
  });

  it('may be undefined, which is as good as absent', () => {
    const options = {
      ...GUEST,
      guest: { qmp: '/s', pid: undefined },
      channels: undefined,
      signal: undefined,
    };
    expect(checkSaveOptions(options)).toMatchObject({ channels: 8 });
  });

  it('take limits', () => {
    for (const channels of [1, 128]) checkSaveOptions({ ...GUEST, channels });
    for (const queueDepth of [1, 256]) checkSaveOptions({ ...GUEST, queueDepth });
  });

  const monitor = { execute: async () => ({}), events: { on: () => {}, off: () => {} } };
  const wrong: [field: string, options: unknown][] = [
    ['channels', { ...GUEST, channels: 0 }],
    ['channels', { ...GUEST, channels: 129 }],
    ['channels', { ...GUEST, channels: 1.5 }],
    ['channels', { ...GUEST, channels: '8' }],
    ['queueDepth', { ...GUEST, queueDepth: 257 }],
    ['engine', { ...GUEST, engine: 'libaio' }],
    ['then', { ...GUEST, then: 'reboot' }],
    ['image', { ...GUEST, image: '' }],
    ['image', { ...GUEST, image: 'a\0b' }],
    ['image', { ...GUEST, image: 'caf\ufffd' }],
    ['image', { ...GUEST, image: 'half\ud83d' }],
    ['image', { guest: GUEST.guest }],
    ['direct', { ...GUEST, direct: 'yes' }],
    ['signal', { ...GUEST, signal: {} }],
    ['guest.qmp', { ...GUEST, guest: { qmp: '' } }],
    ['guest', { ...GUEST, guest: { monitor: { ...monitor, events: { on: () => {} } } } }],
    ['guest', { ...GUEST, guest: { monitor: { ...monitor, pid: '7' } } }],
    ['machine', { ...MEMORY, machine: '' }],
    ['offset', { ...GUEST, offset: 0 }],
    ['guest', { image: '/i' }],
    ['guest', { ...GUEST, guest: {} }],
    ['guest', { ...GUEST, guest: { qmp: '/s', monitor } }],
    ['guest', { ...GUEST, guest: { monitor: { execute: monitor.execute } } }],
    ['guest.scratchFile', { ...GUEST, guest: { monitor, scratchFile: 'relative' } }],
    ['guest.scratchFile', { ...GUEST, guest: { monitor, scratchFile: '/a,offset=5' } }],
    ['guest', { ...GUEST, ...MEMORY }],
    ['memory', { ...MEMORY, memory: [] }],
    ['memory.0', { ...MEMORY, memory: [{ name: 'a', length: 4096 }] }],
    ['memory.0', { ...MEMORY, memory: [{ name: 'a', length: 4096, pid: 1 }] }],
    ['memory.0', { ...MEMORY, memory: [{ name: 'a', length: 4096, file: '/f', fd: 3 }] }],
    ['memory.0', { ...MEMORY, memory: [{ name: 'a', length: 4096, file: '/f', pid: 1, address: 0 }] }],
    ['memory.0.fd', { ...MEMORY, memory: [{ name: 'a', length: 4096, fd: 2 ** 32 + 3 }] }],
    ['memory.0.pid', { ...MEMORY, memory: [{ name: 'a', length: 4096, pid: 2 ** 32 + 1, address: 0 }] }],
    ['memory.0.length', { ...MEMORY, memory: [{ name: 'a', length: -1, file: '/f' }] }],
    ['machine', { image: '/i', memory: MEMORY.memory }],
  ];
  it.each(wrong)('name %s when it is wrong', (field, options) => {
    expect(() => checkSaveOptions(options as SaveOptions)).toThrow(
      expect.objectContaining({ code: 'E_USAGE', field }),
    );
  });
});

describe('a wrong option', () => {
  it.each<[unknown, string]>([
    [undefined, 'The options are not right: it is missing'],
    [null, 'The options are not right: it is no object of options'],
    ['/i', 'The options are not right: it is no object of options'],
    [{ ...GUEST, image: '' }, 'Option image is not right: it is empty'],
    [{ ...GUEST, guest: { qmp: '' } }, 'Option guest.qmp is not right: it is empty'],
    [{ ...GUEST, guest: { qmp: '/s', pid: 0 } }, 'Option guest.pid is not right: it is no process number'],
    [{ guest: GUEST.guest }, 'Option image is not right: it is missing'],
    [{ ...GUEST, colour: 1 }, 'Option colour is not right: there is no such option'],
    [{ ...GUEST, channels: 0 }, 'Option channels is not right: it is no whole number from 1 to 128'],
    [
      { ...GUEST, engine: '' },
      'Option engine is not right: it is none of auto, io-uring, tokio-uring, blocking',
    ],
    [{ ...GUEST, signal: {} }, 'Option signal is not right: it is no AbortSignal'],
    [{ ...MEMORY, machine: '' }, 'Option machine is not right: it is empty'],
    [{ ...MEMORY, memory: [] }, 'Option memory is not right: it is empty'],
    [
      { ...MEMORY, memory: [{ ...MEMORY.memory[0], file: '' }] },
      'Option memory.0.file is not right: it is empty',
    ],
  ])('%j is told in words', (options, message) => {
    expect(() => checkSaveOptions(options as SaveOptions)).toThrow(
      expect.objectContaining({ code: 'E_USAGE', message }),
    );
  });
});

describe('options of restore', () => {
  it('have defaults', () => {
    const options = checkRestoreOptions(GUEST);
    expect(options).toMatchObject({ offset: 0, method: 'auto' });
    expect(options).not.toHaveProperty('then');
  });

  it.each([
    ['then', { ...GUEST, then: 'quit' }],
    ['method', { ...GUEST, method: 'copy' }],
    ['offset', { ...GUEST, offset: -1 }],
    ['force', { ...GUEST, force: true }],
  ])('name %s when it is wrong', (field, options) => {
    expect(() => checkRestoreOptions(options as RestoreOptions)).toThrow(
      expect.objectContaining({ code: 'E_USAGE', field }),
    );
  });
});

describe('chooseTransfer', () => {
  const how = { queueDepth: 4, engine: 'blocking', direct: false, copy: 'auto' } as const;

  it('takes no more threads than channels, and no more than 8', async () => {
    expect(await chooseTransfer({ ...how, channels: 1 })).toMatchObject({ threads: 1, engine: 'blocking' });
    const { threads, threadsForFreshMemory } = await chooseTransfer({ ...how, channels: 128 });
    expect(threads).toBeLessThanOrEqual(threadsForFreshMemory);
    expect(threadsForFreshMemory).toBeLessThanOrEqual(8);
  });

  it('names the engine that auto stands for', async () => {
    expect((await chooseTransfer({ ...how, channels: 1, engine: 'auto' })).engine).not.toBe('auto');
  });
});

it('names the engines that the addon has', async () => {
  const [, ...names] = ENGINES;
  await expect(chooseEngine('none', DEFAULT_LOAD)).rejects.toThrow(
    new RegExp(`there are ${names.join(', ')}$`),
  );
});
