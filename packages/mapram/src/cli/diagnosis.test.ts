import { expect, it } from 'vitest';
import type { Check } from '../doctor.ts';
import { diagnosis } from './diagnosis.ts';

const fine: Check = { name: 'kernel', area: 'host', status: 'ok', message: 'Linux 6.18' };
const slow: Check = { name: 'memlock', area: 'host', status: 'warn', message: 'low', advice: 'raise it' };
const host: Check = {
  name: 'engine-auto',
  area: 'host',
  status: 'fail',
  message: 'none',
  advice: 'allow one',
};
const guest: Check = { name: 'devices', area: 'guest', status: 'fail', message: 'vfio', advice: 'unplug it' };

it('prints a line a check, advice below it, and a summary', () => {
  expect(diagnosis({ checks: [fine, slow] }).text).toBe(
    [
      'ok    kernel              Linux 6.18',
      'warn  memlock             low',
      '                          -> raise it',
      '',
      'A save would work. 1 of 2 checks have a warning.',
      '',
    ].join('\n'),
  );
  expect(diagnosis({ checks: [fine, guest] }).text).toContain('A save would fail: 1 of 2 checks failed.');
});

it('exits 0, or by whose checks failed', () => {
  expect(diagnosis({ checks: [fine, slow] }).status).toBe(0);
  expect(diagnosis({ checks: [fine, host] }).status).toBe(4);
  expect(diagnosis({ checks: [fine, guest] }).status).toBe(5);
  expect(diagnosis({ checks: [guest, host] }).status).toBe(4);
  const missing: Check = { ...guest, name: 'qmp', code: 'E_NOT_FOUND' };
  expect(diagnosis({ checks: [fine, missing] })).toMatchObject({
    status: 1,
    report: { error: { code: 'E_NOT_FOUND' } },
  });
});

it('as JSON has the shape of success or of failure, with the checks', () => {
  expect(diagnosis({ checks: [fine] }).report).toEqual({ schemaVersion: 1, ok: true, checks: [fine] });
  expect(JSON.parse(JSON.stringify(diagnosis({ checks: [fine, guest] }).report))).toEqual({
    schemaVersion: 1,
    ok: false,
    error: { code: 'E_GUEST_UNSUPPORTED', message: 'vfio', field: 'devices' },
    guestState: 'untouched',
    checks: [fine, guest],
  });
});
