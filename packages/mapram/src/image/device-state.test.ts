import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ByteWriter } from './byte-writer.ts';
import { findRunState, patchRunState, splitDevicesState } from './device-state.ts';
import { deviceSection, deviceState, globalState } from './read.fixture.ts';

function joined(...parts: Uint8Array[]): Uint8Array {
  return parts
    .reduce((writer, part) => writer.bytes(part), new ByteWriter())
    .u8(0)
    .toBytes();
}

test('the sections of xen-save-devices-state come out as they stand in an image', () => {
  const written = new ByteWriter().be32(0x5145564d).be32(3).bytes(deviceState()).toBytes();
  expect(splitDevicesState(written)).toEqual(deviceState());
});

test.each([
  ['empty', new Uint8Array(0)],
  ['another magic', new ByteWriter().be32(0x5145564e).be32(3).bytes(deviceState()).toBytes()],
  ['another version', new ByteWriter().be32(0x5145564d).be32(2).bytes(deviceState()).toBytes()],
  ['no EOF', new ByteWriter().be32(0x5145564d).be32(3).bytes(globalState('paused')).toBytes()],
  [
    'cut in a section',
    new ByteWriter().be32(0x5145564d).be32(3).bytes(deviceState()).toBytes().subarray(0, -9),
  ],
])('what QEMU did not write is refused: %s', (_, bytes) => {
  expect(() => splitDevicesState(bytes)).toThrow(
    expect.objectContaining({ code: 'E_QMP', field: 'device state' }),
  );
});

test('the run state is found, and replaced without touching anything else', () => {
  const states = ['running', 'paused', 'suspended', 'prelaunch', 'finish-migrate'];
  fc.assert(
    fc.property(
      fc.constantFrom(...states),
      fc.constantFrom(...states),
      fc.integer({ min: 0, max: 1 }),
      fc.uint8Array({ maxLength: 300 }),
      (before, after, suspended, noise) => {
        const first = deviceSection(4, 'noise', noise);
        const state = joined(first, globalState(before, suspended));
        expect(findRunState(state)).toEqual({ state: before, offset: first.length + 5 + 20 });
        const sleeps = before === 'suspended' && after !== 'suspended';
        expect(patchRunState(state, after)).toEqual(
          joined(first, globalState(after, sleeps ? 1 : suspended)),
        );
        expect(state).toEqual(joined(first, globalState(before, suspended)));
      },
    ),
  );
});

test('a guest that was suspended is recorded as one that sleeps, by a QEMU too that did not say so', () => {
  const state = joined(globalState('suspended', 0));
  const flags = (bytes: Uint8Array): Uint8Array => bytes.subarray(25 + 36, 25 + 38);
  state.fill(0, 25 + 36, 25 + 38);
  expect(flags(patchRunState(state, 'paused'))).toEqual(Uint8Array.of(1, 1));
  expect(flags(patchRunState(state, 'suspended'))).toEqual(Uint8Array.of(0, 0));
});

test('a view of a larger buffer is neither misread nor changed', () => {
  const state = joined(globalState('paused'));
  const buffer = Buffer.concat([Buffer.alloc(13, 4), state]).subarray(13);
  const patched = patchRunState(buffer, 'running');
  expect(findRunState(patched)?.state).toBe('running');
  expect(patched).toEqual(joined(globalState('running')));
  expect(findRunState(buffer)?.state).toBe('paused');
});

test('the last match wins, for a device may hold anything', () => {
  const state = joined(deviceSection(4, 'noise', globalState('running')), globalState('paused'));
  expect(findRunState(state)?.state).toBe('paused');
});

test.each([
  ['none', (bytes: Uint8Array) => bytes.subarray(0, 40)],
  ['another footer id', (bytes: Uint8Array) => bytes.with(bytes.length - 2, 77)],
  ['a size beyond the name', (bytes: Uint8Array) => bytes.with(28, 12)],
  ['another version', (bytes: Uint8Array) => bytes.with(24, 2)],
])('no run state is found in a section that does not fit: %s', (_, damage) => {
  const damaged = damage(joined(globalState('paused')));
  expect(findRunState(damaged)).toBeUndefined();
  expect(() => patchRunState(damaged, 'paused')).toThrow(
    expect.objectContaining({ code: 'E_IMAGE_INVALID' }),
  );
});

test('only names of run states are written', () => {
  expect(() => patchRunState(deviceState(), 'x'.repeat(32))).toThrow(RangeError);
  expect(() => patchRunState(deviceState(), '')).toThrow(RangeError);
});
