import type { MapramError } from '../errors.ts';

/** `work`, unless the time is over or the signal comes first. */
export async function within<T>(
  work: Promise<T>,
  limit: { timeoutMs: number; late: () => Promise<MapramError>; signal: AbortSignal | undefined },
): Promise<T> {
  const { timeoutMs, late, signal } = limit;
  let timer: NodeJS.Timeout | undefined;
  let onAbort = (): void => {};
  const ended = new Promise<never>((_, reject) => {
    if (timeoutMs > 0) timer = setTimeout(() => void late().then(reject, reject), timeoutMs);
    onAbort = () => reject(signal?.reason);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([work, ended]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  }
}
