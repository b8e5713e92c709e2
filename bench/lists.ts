/**
 * Reads a list of channel counts: single numbers and ranges, which step by powers of two and include their end.
 *
 * `1,2,8` is 1, 2, 8; `1..128` is 1, 2, 4, 8, 16, 32, 64, 128; `3..20` is 3, 4, 8, 16, 20.
 *
 * @returns the counts, ascending and each once.
 * @throws {Error} if a number is not one of 1 to 128 or a range runs backwards.
 */
export function parseChannels(text: string): number[] {
  const counts = text.split(',').flatMap((item) => {
    const range = /^(\d+)\.\.(\d+)$/.exec(item);
    return range === null
      ? [channelCount(item)]
      : powersBetween(channelCount(range[1]), channelCount(range[2]));
  });
  return [...new Set(counts)].sort((a, b) => a - b);
}

function channelCount(text: string | undefined): number {
  const count = /^\d+$/.test(text ?? '') ? Number(text) : Number.NaN;
  if (!(count >= 1 && count <= 128)) throw new Error(`'${text}' is not a channel count from 1 to 128`);
  return count;
}

function powersBetween(first: number, last: number): number[] {
  if (first > last) throw new Error(`the range ${first}..${last} runs backwards`);
  const between = [1, 2, 4, 8, 16, 32, 64, 128].filter((power) => power > first && power < last);
  return [first, ...between, last];
}

const UNITS: Record<string, number> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/**
 * Reads a size such as `512M` or `2G` (powers of 1024).
 *
 * @throws {Error} if it is not a whole number of 4 MiB, the granularity of the workloads.
 */
export function parseSize(text: string): number {
  const found = /^(\d+)([KMGT]?)(?:i?B)?$/.exec(text);
  const bytes = found === null ? Number.NaN : Number(found[1]) * (UNITS[found[2] ?? ''] ?? Number.NaN);
  if (!(bytes > 0 && bytes % (4 << 20) === 0))
    throw new Error(`'${text}' is not a size in steps of 4M, such as 512M or 2G`);
  return bytes;
}

/**
 * Reads a comma-separated choice of `names`, each once, where `all` stands for every one of them.
 *
 * @throws {Error} naming what is not among them.
 */
export function parseNames<Name extends string>(names: readonly Name[], text: string): Name[] {
  if (text === 'all') return [...names];
  const chosen = text.split(',').map((item) => {
    const name = names.find((known) => known === item);
    if (name === undefined) throw new Error(`'${item}' is none of ${names.join(', ')}`);
    return name;
  });
  return [...new Set(chosen)];
}
