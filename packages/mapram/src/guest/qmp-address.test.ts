import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { parseQmpAddress } from './qmp-address.ts';

describe('the QMP socket', () => {
  it.each([
    ['/run/a.sock', '/run/a.sock'],
    ['a,b.sock', 'a,b.sock'],
    ['./@a', './@a'],
    ['mon', 'mon'],
    ['pipe', 'pipe'],
    ['fd', 'fd'],
    ['unix:/run/a.sock', '/run/a.sock'],
    ['unix:/run/a.sock,server=on,wait=off', '/run/a.sock'],
    ['unix:a,,b.sock,server,nowait', 'a,b.sock'],
    ['@mapram', '\0mapram'],
    ['unix:mapram,abstract=on', '\0mapram'],
    ['unix:mapram,server=on,abstract=on,tight=off', `\0mapram${'\0'.repeat(101)}`],
  ])('%j is %j', (text, socket) => {
    expect(parseQmpAddress(text).socket).toBe(socket);
  });

  it.each(['vm.1:4', 'tcp:a'])('is %j where a file of that name is', (text) => {
    const directory = mkdtempSync('/var/tmp/mapram-unit-');
    const before = process.cwd();
    onTestFinished(() => {
      process.chdir(before);
      rmSync(directory, { recursive: true });
    });
    writeFileSync(join(directory, text), '');
    process.chdir(directory);
    expect(parseQmpAddress(text).socket).toBe(text);
  });

  it('has a name that can be read', () => {
    expect(parseQmpAddress('unix:mapram,abstract=on,tight=off').name).toBe('@mapram');
  });

  it.each([
    'tcp:localhost:4444',
    'tcp::4444,server=on',
    'localhost:4444',
    'telnet::1',
    'stdio:',
    'fd:3',
    'vm.1:4',
  ])('is not %j', (text) => {
    expect(() => parseQmpAddress(text)).toThrow(
      expect.objectContaining({
        code: 'E_USAGE',
        message: expect.stringContaining('descriptors'),
        field: 'qmp',
      }),
    );
  });

  it('has no options that QEMU does not know', () => {
    expect(() => parseQmpAddress('unix:/run/a.sock,abstrct=on')).toThrow(
      expect.objectContaining({ code: 'E_USAGE', message: expect.stringContaining('abstrct=on') }),
    );
  });
});
