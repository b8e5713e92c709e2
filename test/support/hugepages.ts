import { readFileSync, writeFileSync } from 'node:fs';
import type { Cleanup } from './cleanup.ts';

const COUNT = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages';

/**
 * Reserves 2 MiB pages and gives them back by `cleanup`.
 *
 * @returns why the host refused, or undefined.
 */
export function reserveHugePages(cleanup: Cleanup, mebibytes: number): string | undefined {
  let before: number;
  try {
    before = Number(readFileSync(COUNT, 'utf8'));
    writeFileSync(COUNT, String(before + mebibytes / 2));
  } catch (error) {
    return `2 MiB pages cannot be reserved: ${(error as Error).message}`;
  }
  cleanup.add(() => writeFileSync(COUNT, String(before)));
  const got = Number(readFileSync(COUNT, 'utf8')) - before;
  return got < mebibytes / 2 ? `the host reserved only ${got} of ${mebibytes / 2} huge pages` : undefined;
}
