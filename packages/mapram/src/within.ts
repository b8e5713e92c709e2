import type { MapramError } from './errors.ts';

/** `work`, unless the time is over (there is no limit without `timeoutMs`) or the signal comes first. */
export async function within<T>(
  work: Promise<T>,
  limit: { timeoutMs?: number; late?: () => Promise<MapramError>; signal: AbortSignal | undefined },
): Promise<T> {
  const { timeoutMs = 0, late, signal } = limit;
  let timer: NodeJS.Timeout | undefined;
  let onAbort = (): void => {};
  const ended = new Promise<never>((_, reject) => {
    if (timeoutMs > 0 && late !== undefined)
      timer = setTimeout(() => void late().then(reject, reject), timeoutMs);
    onAbort = () => reject(signal?.reason);
    if (signal?.aborted) onAbort();
    signal?.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([ended, work]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  }
}
