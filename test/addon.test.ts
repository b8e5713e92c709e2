import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { failWith, run } from './support/cli.ts';

// A native addon that does not load: the loader takes the file that this variable names, and no other.

const line = ['save', '--qmp', '/var/tmp/mapram-none.sock', '/var/tmp/mapram-none'];

describe('an addon that does not load', () => {
  test('is what this host lacks, with the likely reason', async () => {
    const env = { NAPI_RS_NATIVE_LIBRARY_PATH: '/var/tmp/mapram-none.node' };
    const missing = await failWith(4, 'E_HOST_UNSUPPORTED', line, { env });
    expect(missing.error?.message).toMatch(/native addon does not load: it is not installed/);
    expect(missing.guestState).toBe('untouched');

    const directory = mkdtempSync('/var/tmp/mapram-addon-');
    onTestFinished(() => rmSync(directory, { recursive: true }));
    const damaged = join(directory, 'mapram.node');
    writeFileSync(damaged, 'no library at all, but long enough for the header of one. '.repeat(20));
    const refused = await failWith(4, 'E_HOST_UNSUPPORTED', line, {
      env: { NAPI_RS_NATIVE_LIBRARY_PATH: damaged },
    });
    expect(refused.error).toMatchObject({
      message: expect.stringContaining('damaged'),
      cause: expect.stringContaining('invalid ELF header'),
    });
  });

  test('is told so by doctor, which says all the same what it can', async () => {
    const env = { NAPI_RS_NATIVE_LIBRARY_PATH: '/var/tmp/mapram-none.node' };
    const result = await run(['doctor'], { env });
    expect(result).toMatchObject({ status: 4, stderr: '' });
    expect(result.stdout).toMatch(/^fail {2}addon .*native addon does not load/m);
    for (const name of ['kernel', 'locked-memory', 'process-memory', 'pagemap', 'file-system']) {
      expect(result.stdout).toMatch(new RegExp(`^(ok  |warn)  ${name}`, 'm'));
    }
  });

  test('keeps nobody from help, usage errors and inspecting', async () => {
    const env = { NAPI_RS_NATIVE_LIBRARY_PATH: '/var/tmp/mapram-none.node' };
    expect(await run(['--help'], { env })).toMatchObject({ status: 0 });
    await failWith(2, 'E_USAGE', ['save', '--json'], { env });
    await failWith(1, 'E_NOT_FOUND', ['inspect', '/var/tmp/mapram-none'], { env });
  });
});
