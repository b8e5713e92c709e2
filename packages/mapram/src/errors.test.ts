import { openSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { asMapramError, MapramError } from './errors.ts';

function thrownBy(work: () => unknown): unknown {
  try {
    return work();
  } catch (error) {
    return error;
  }
}

describe('anything thrown, as a MapramError', () => {
  it('is a bug of ours if nobody foresaw it', () => {
    for (const thrown of [new TypeError('x is undefined'), 'x is undefined']) {
      const error = asMapramError(thrown);
      expect(error).toMatchObject({ code: 'E_INTERNAL', cause: thrown });
      expect(error.message).toBe('a bug in mapram, please report it: x is undefined');
    }
  });

  it('has the code that fits the errno if the system refused', () => {
    const missing = asMapramError(thrownBy(() => openSync('/var/tmp/mapram-none', 'r')));
    expect(missing).toMatchObject({ code: 'E_NOT_FOUND', path: '/var/tmp/mapram-none' });
    const refused = (code: string) => Object.assign(new Error(code), { code, errno: -1, syscall: 'open' });
    expect(asMapramError(refused('EMFILE')).code).toBe('E_HOST_UNSUPPORTED');
    expect(asMapramError(refused('EACCES')).code).toBe('E_PERMISSION');
    expect(asMapramError(refused('EIO')).code).toBe('E_IO');
  });

  it('stays what it is if it is one', () => {
    const error = new MapramError('E_QMP', 'no');
    expect(asMapramError(error)).toBe(error);
  });
});
