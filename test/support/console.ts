import type { Qemu } from './qemu.ts';
import { waitFor } from './wait.ts';

/** Waits until the guest's program has filled its memory and counts. */
export async function waitForProgram(qemu: Qemu): Promise<number> {
  try {
    return await waitFor('the guest to count', 180_000, () => {
      if (!qemu.alive()) throw new Error(`QEMU ended: ${qemu.complaints()}`);
      const last = counts(qemu.serial()).at(-1);
      return last !== undefined && last >= 3 ? last : undefined;
    });
  } catch (cause) {
    const said = JSON.stringify(qemu.serial().slice(-500));
    throw new Error(`${(cause as Error).message}; its console ends with ${said}`, { cause });
  }
}

/** The numbers of all whole "count N" lines. */
export function counts(text: string): number[] {
  return [...text.matchAll(/^count (\d+)\r?\n/gm)].map((match) => Number(match[1]));
}

/**
 * Lets a restored guest run on and checks what its program says: the count goes on from where the saved guest's console
 * stood, without a gap or repetition, and a full check of its memory finds it intact.
 *
 * @param before all that the saved guest had written when it was paused.
 */
export async function expectGuestRunsOn(qemu: Qemu, before: string): Promise<void> {
  const text = await waitFor('the restored guest to check its memory twice', 120_000, () => {
    if (!qemu.alive()) throw new Error(`QEMU ended: ${qemu.complaints()}`);
    const serial = qemu.serial();
    return (serial.match(/^sum (ok|BAD) \d+\r?\n/gm)?.length ?? 0) >= 2 ? serial : undefined;
  });
  // A line may have been cut by the pause: only both consoles together show every count.
  expectUnbrokenCount(before + text);
}

/** Throws if the counts in `text` are not 1, 2, 3, ... or if a check of memory failed. */
export function expectUnbrokenCount(text: string): void {
  if (text.includes('BAD')) throw new Error(`the guest found its memory changed:\n${text.slice(-400)}`);
  counts(text).forEach((count, index) => {
    if (count !== index + 1) throw new Error(`the guest's count broke at ${index + 1}:\n${text.slice(-400)}`);
  });
}
