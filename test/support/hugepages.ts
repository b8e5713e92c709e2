import { readFileSync, writeFileSync } from 'node:fs';
import type { Cleanup } from './cleanup.ts';

const COUNT = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages';

/**
 * Reserves 2 MiB pages and gives them back by `cleanup`.
 *
 * @returns why the host refused, or undefined.
 */
export function reserveHugePages(cleanup: Cleanup, mebibytes: number): string | undefined {
  const count = () => Number(readFileSync(COUNT, 'utf8'));
  const wanted = mebibytes / 2;
  let got: number;
  try {
    const before = count();
    writeFileSync(COUNT, String(before + wanted));
    got = count() - before;
  } catch (error) {
    return `2 MiB pages cannot be reserved: ${(error as Error).message}`;
  }
  // As many as came, not as many as there were: others may reserve and give back meanwhile.
  cleanup.add(() => writeFileSync(COUNT, String(Math.max(0, count() - got))));
  return got < wanted ? `the host reserved only ${got} of ${wanted} huge pages` : undefined;
}
