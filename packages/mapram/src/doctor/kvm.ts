import { closeSync, constants, openSync } from 'node:fs';
import * as v from 'valibot';
import type { ExecuteOptions, Monitor } from '../guest/monitor.ts';
import { ask } from '../guest/queries.ts';
import { type Finding, messageOf, ok } from './check.ts';

/** Whether guests could run under KVM here. Good to know, and nothing that a save needs: emulated guests are saved as well. */
export function hostKvm(): Finding {
  try {
    closeSync(openSync('/dev/kvm', constants.O_RDWR));
    return ok('KVM is there: /dev/kvm can be opened');
  } catch (error) {
    return ok(`this user starts no guests under KVM (${messageOf(error)}); saves need none`);
  }
}

/** Whether this guest runs under KVM. */
export async function guestAccelerator(monitor: Monitor, options: ExecuteOptions): Promise<Finding> {
  const { enabled } = await ask(monitor, v.object({ enabled: v.boolean() }), 'query-kvm', {}, options);
  return ok(
    enabled ? 'the guest runs under KVM' : 'the guest runs without KVM: QEMU emulates its processors',
  );
}
