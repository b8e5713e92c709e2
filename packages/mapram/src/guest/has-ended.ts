import { readFile } from 'node:fs/promises';

/** Whether process `pid` has ended; one that nobody has waited for yet counts as ended. */
export async function hasEnded(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return status === '' || /^State:\s+[ZX]/m.test(status);
}
