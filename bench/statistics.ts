/**
 * The middle of the values, or the mean of the two middle ones.
 *
 * @throws {Error} if there is none.
 */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const upper = sorted[sorted.length >> 1];
  const lower = sorted[(sorted.length - 1) >> 1];
  if (upper === undefined || lower === undefined) throw new Error('the median of nothing');
  return (upper + lower) / 2;
}

/** A value measured in a round. */
export interface InRound {
  round: number;
  value: number;
}

/**
 * The median of the quotients of two series, each formed within a round: what slows a whole round slows both of its sides,
 * and so leaves the quotient alone.
 *
 * @returns undefined if no round has both.
 */
export function ratioWithinRounds(above: readonly InRound[], below: readonly InRound[]): number | undefined {
  const quotients = above.flatMap(({ round, value }) => {
    const other = below.find((candidate) => candidate.round === round);
    return other === undefined ? [] : [value / other.value];
  });
  return quotients.length === 0 ? undefined : median(quotients);
}
