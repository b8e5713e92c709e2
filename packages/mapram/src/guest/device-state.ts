import type { GuestLink } from './link.ts';

/**
 * The stream of device sections that `xen-save-devices-state` writes; in spite of its name the command needs no Xen. To be called
 * while the guest is stopped.
 *
 * Despite its name, `live: true` gives up the disks of a guest that is stopped already: it makes them inactive and releases their
 * locks for the other end of a Xen migration (QEMU 10.0.2, qmp_xen_save_devices_state in migration/savevm.c). `live: false` leaves
 * them with the guest.
 */
export async function captureDeviceState(link: GuestLink): Promise<Uint8Array> {
  return link.handover.receive(async (filename) => {
    // QEMU waits for its disks first. Giving up would leave the guest standing for longer, not for less.
    const { signal } = link.handover.canBeLeft ? link.options : {};
    const patient = { ...link.options, signal, timeoutMs: 0 };
    await link.monitor.execute('xen-save-devices-state', { filename, live: false }, patient);
  });
}
