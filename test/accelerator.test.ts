import { expect, test } from 'vitest';
import { ACCELERATOR, kvmRefusal } from './support/accelerator.ts';
import { report, run } from './support/cli.ts';
import { pausedGuest, testCleanup } from './support/fixtures.ts';

test('doctor names the accelerator, and it is the one that these tests are run for', async () => {
  const qemu = await pausedGuest(testCleanup());
  const checks = await doctor('--qmp', qemu.socket);
  const message = ACCELERATOR === 'kvm' ? 'the guest runs under KVM' : /without KVM/;
  expect(checks.get('accelerator')).toMatchObject({ area: 'guest', status: 'ok' });
  expect(checks.get('accelerator')?.message).toMatch(message);
});

test('doctor says whether guests can run under KVM on this host', async () => {
  const check = (await doctor()).get('kvm');
  expect(check).toMatchObject({ area: 'host', status: 'ok' });
  if (kvmRefusal() === undefined) expect(check?.message).toMatch('KVM is there');
});

/** The checks of `mapram doctor`, by name. */
async function doctor(...words: string[]) {
  const { checks } = report(await run(['doctor', ...words, '--json'])) as unknown as {
    checks: { name: string; area: string; status: string; message: string }[];
  };
  return new Map(checks.map((check) => [check.name, check]));
}
