import { describe, expect, it } from 'vitest';
import { asMapramError, type ErrorCode, EXIT_STATUS, MapramError } from '../errors.ts';
import { exitStatus, failureReport, failureText } from './failure.ts';

describe('a failure as JSON', () => {
  it('carries what is known and nothing else', () => {
    const error = new MapramError('E_IMAGE_INVALID', 'pages_offset is not aligned', {
      path: '/i',
      offset: 0x83,
      field: 'pages_offset',
      cause: new Error('why'),
    });
    expect(JSON.parse(JSON.stringify(failureReport(error)))).toEqual({
      schemaVersion: 1,
      ok: false,
      error: {
        code: 'E_IMAGE_INVALID',
        message: 'pages_offset is not aligned',
        path: '/i',
        offset: 0x83,
        field: 'pages_offset',
        cause: 'why',
      },
      guestState: 'untouched',
    });
    expect(JSON.parse(JSON.stringify(failureReport(new MapramError('E_QMP', 'no'))))).toEqual({
      schemaVersion: 1,
      ok: false,
      error: { code: 'E_QMP', message: 'no' },
      guestState: 'untouched',
    });
  });

  it('says how the guest was left', () => {
    const error = new MapramError('E_RESTORE_INCOMPLETE', 'half', { guestState: 'unusable' });
    expect(failureReport(error)).toMatchObject({ guestState: 'unusable' });
  });
});

describe('a failure as text', () => {
  it('names file, offset, field, cause and guest', () => {
    const error = new MapramError('E_IO', 'reading failed', {
      path: '/i',
      offset: 16,
      field: 'bitmap',
      cause: new Error('EIO: i/o error'),
      guestState: 'running',
    });
    expect(failureText(error)).toBe(
      'mapram: reading failed (E_IO)\n' +
        '  file /i, offset 16 (0x10), field bitmap\n' +
        '  cause: EIO: i/o error\n' +
        '  The guest is running.\n',
    );
  });

  it('repeats nothing that the message says', () => {
    const context = { path: '/i', offset: 16, field: 'magic', cause: new Error('EIO') };
    const error = new MapramError('E_IO', '/i cannot be read: EIO (magic at offset 16)', context);
    expect(failureText(error)).toBe('mapram: /i cannot be read: EIO (magic at offset 16) (E_IO)\n');
  });

  it('of a bug says where it is and asks for a report', () => {
    const text = failureText(asMapramError(new TypeError('x is undefined')));
    expect(text).toContain('mapram: a bug in mapram, please report it: x is undefined (E_INTERNAL)\n');
    expect(text).toContain('failure.test.ts');
  });

  it('has the innermost reason and its file, and says nothing twice', () => {
    const system = new MapramError('E_NO_SPACE', 'writing a memory file at offset 4096 failed', {
      path: '/dev/shm/ram',
      cause: 'No space left on device (os error 28)',
    });
    const between = new Error('the fill failed', { cause: system });
    const message = 'The guest was restored in part only: writing a memory file at offset 4096 failed';
    const error = new MapramError('E_RESTORE_INCOMPLETE', message, { cause: between });
    expect(failureText(error)).toBe(
      `mapram: ${message} (E_RESTORE_INCOMPLETE)\n` +
        '  file /dev/shm/ram\n' +
        '  cause: the fill failed: No space left on device (os error 28)\n',
    );
    const cause = 'the fill failed: No space left on device (os error 28)';
    expect(failureReport(error)).toMatchObject({ error: { path: '/dev/shm/ram', cause } });
  });

  it('is one line where nothing more is known', () => {
    expect(failureText(new MapramError('E_USAGE', 'no such option'))).toBe(
      'mapram: no such option (E_USAGE)\n',
    );
  });
});

describe('the exit status', () => {
  it.each(Object.entries(EXIT_STATUS))('of %s is %i', (code, status) => {
    expect(exitStatus(new MapramError(code as ErrorCode, 'x'), undefined)).toBe(status);
  });

  it('is that of the signal when a signal cancelled', () => {
    expect(exitStatus(new MapramError('E_CANCELLED', 'x'), 143)).toBe(143);
    expect(exitStatus(new MapramError('E_RESTORE_INCOMPLETE', 'x'), 143)).toBe(1);
  });

  it('of an unforeseen error is that of a bug', () => {
    expect(exitStatus(asMapramError(new TypeError('x is undefined')), undefined)).toBe(6);
  });
});

it('names the option that helps', () => {
  const exists = new MapramError('E_TARGET_EXISTS', '/i exists already, and replacing it was not asked for');
  expect(failureText(exists)).toContain('--force');
  const buffered = new MapramError('E_HOST_UNSUPPORTED', 'this file system has no direct I/O; go without it');
  expect(failureText(buffered)).toContain('--no-direct');
  const limits = { cause: new Error('Too many open files (os error 24)') };
  expect(failureText(new MapramError('E_HOST_UNSUPPORTED', 'no ring', limits))).toContain('ulimit -n');
  const system = { cause: new Error('Too many open files in system (os error 23)') };
  expect(failureText(new MapramError('E_HOST_UNSUPPORTED', 'no ring', system))).not.toContain('ulimit');
  const large = { cause: new Error('File too large (os error 27)') };
  expect(failureText(new MapramError('E_NO_SPACE', 'writing failed', large))).toContain('ulimit -f');
  expect(failureText(new MapramError('E_TARGET_EXISTS', '/i is a directory'))).not.toContain('--force');
});

it('tells nobody to resume a guest that may run elsewhere', () => {
  const paused = (code: ErrorCode): string =>
    failureText(new MapramError(code, 'no', { guestState: 'paused' }));
  expect(paused('E_QMP')).toContain('cont resumes it.');
  expect(paused('E_GUEST_RAN')).toContain('see first what the other client does');
});
