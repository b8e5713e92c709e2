import { GuestMemory } from '../native.ts';
import type { GuestLink } from './link.ts';
import type { ExecuteOptions } from './monitor.ts';
import { confirmGuestProcess } from './process.ts';
import type { RamBlock } from './ram-blocks.ts';

/**
 * Opens the RAM blocks of the guest that runs in process `pid`; the caller closes them.
 *
 * @throws {MapramError} E_PERMISSION, E_GUEST_GONE, or E_GUEST_MISMATCH if the process is not the guest any more.
 */
export async function openGuestMemory(
  link: GuestLink,
  pid: number,
  blocks: readonly RamBlock[],
  access: { writable: boolean },
  options?: ExecuteOptions,
): Promise<GuestMemory> {
  const addresses = blocks.map(({ name, address, usedLength }) => ({ name, address, length: usedLength }));
  const memory = await GuestMemory.ofProcess(pid, addresses, access.writable);
  try {
    await confirmGuestProcess(link, pid, options);
  } catch (error) {
    memory.close();
    throw error;
  }
  return memory;
}
