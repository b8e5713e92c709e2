import { readFromQemu } from './fdset.ts';
import type { GuestLink } from './link.ts';
import type { ExecuteOptions } from './monitor.ts';

/**
 * The stream of device sections that `xen-save-devices-state` writes; in spite of its name the command needs no Xen. To be called
 * while the guest is stopped. `live` leaves the guest's disks with it, so that it can simply be continued.
 */
export async function captureDeviceState(link: GuestLink, options: ExecuteOptions): Promise<Uint8Array> {
  return readFromQemu(
    link,
    async (filename) => {
      await link.monitor.execute('xen-save-devices-state', { filename, live: true }, options);
    },
    options,
  );
}
