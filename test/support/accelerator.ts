import { spawnSync } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { guestFirmware, guestSystem } from './kernel.ts';
import { QEMU } from './paths.ts';

/** What runs the guests of this run's tests: all of a project run under the same (vitest.config.ts). */
export const ACCELERATOR: 'tcg' | 'kvm' = process.env['MAPRAM_TEST_ACCELERATOR'] === 'kvm' ? 'kvm' : 'tcg';

/** This processor as far as every KVM can give it: one that runs in a guest itself may refuse the MSR of this feature. */
const CPU = 'host,-arch-capabilities';

/** Where QEMU finds a descriptor of /dev/kvm that it inherited, for a user who may not open it. */
const INHERITED = ['-add-fd', 'fd=9,set=9'];

/** The number of that descriptor. */
export const KVM_DESCRIPTOR = 9;

/** Why guests cannot run under KVM here, or undefined. */
export function kvmRefusal(): string | undefined {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch (error) {
    return `no KVM: ${(error as Error).message}`;
  }
  const words = ['-accel', 'kvm', '-cpu', CPU, '-nodefaults', '-display', 'none', '-S', '-monitor', 'stdio'];
  const { status, error, stderr } = spawnSync(QEMU, words, {
    input: 'quit\n',
    encoding: 'utf8',
    timeout: 60_000,
  });
  if (status === 0) return undefined;
  const reason = error?.message ?? stderr.trim().replaceAll('\n', '; ');
  return `QEMU does not start under KVM: ${reason}`;
}

/**
 * QEMU's options for the accelerator and for what the guest runs.
 *
 * @param program MiB that the guest's program has filled, or undefined for a guest that stays in its firmware.
 * @param inheritsKvm Whether QEMU was started with /dev/kvm as {@link KVM_DESCRIPTOR}.
 */
export function guestOptions(program: number | undefined, inheritsKvm: boolean): string[] {
  if (ACCELERATOR === 'kvm') {
    const accelerator = inheritsKvm ? [...INHERITED, '-accel', 'kvm,device=/dev/fdset/9'] : ['-accel', 'kvm'];
    // SeaBIOS gives KVM a page to write the time to, again at every load: such memory equals no image.
    if (program === undefined) return [...accelerator, '-cpu', `${CPU},-kvmclock`];
    return [...accelerator, '-cpu', CPU, '-bios', guestFirmware()];
  }
  if (program === undefined) return ['-accel', 'tcg'];
  const { kernel, initramfs } = guestSystem();
  const append = `console=ttyS0 quiet loglevel=3 mib=${program}`;
  return ['-accel', 'tcg', '-kernel', kernel, '-initrd', initramfs, '-append', append];
}
