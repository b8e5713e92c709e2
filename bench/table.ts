import { isCeiling } from './disk.ts';
import type { Run } from './measurement.ts';
import { DIRECT_STOCK_TYPE } from './stock-save.ts';
import { type Series, speedRatio } from './summary.ts';

/** A table: the first row is the head; all columns but the first are numbers. */
export type Table = string[][];

const HEAD = [
  'migration type',
  'channels',
  'MB/s',
  'slowest-fastest',
  'pages/s',
  'ms',
  'CPU-s/GiB',
  'engine',
  'kernel',
  'pause ms',
  '% of ceiling',
  'x QEMU',
  'source',
];

/** The table of all series: medians, and ratios formed within rounds. fio and dd move the data bytes alone, and show their rate. */
export function seriesTable(series: Series[], runs: Run[], guestBytes: number): Table {
  const ceiling = Math.max(
    ...series.filter(({ type }) => isCeiling(type)).map(({ dataBytesPerSecond }) => dataBytesPerSecond),
  );
  const rows = series.map((one) => {
    const isGuest = !isDiskOnly(one.type);
    const rate = (milliseconds: number) => {
      const perSecond = isGuest
        ? guestBytes / milliseconds
        : (one.dataBytesPerSecond * one.milliseconds) / 1000 / milliseconds;
      return (perSecond / 1000).toFixed(0);
    };
    return [
      one.type,
      one.channels?.toString() ?? '',
      rate(one.milliseconds),
      `${rate(one.slowestMilliseconds)}-${rate(one.fastestMilliseconds)}`,
      isGuest ? one.pagesPerSecond.toFixed(0) : '',
      one.milliseconds.toFixed(0),
      one.cpuSecondsPerGiB.toFixed(2),
      isGuest ? one.engineCpuSecondsPerGiB.toFixed(2) : '',
      one.kernelCpuSecondsPerGiB.toFixed(2),
      one.pauseMilliseconds?.toFixed(0) ?? '',
      Number.isFinite(ceiling) ? ((100 * one.dataBytesPerSecond) / ceiling).toFixed(0) : '',
      ratioCell(one, series, runs),
      one.source ?? '',
    ];
  });
  return [HEAD, ...rows];
}

/** True for what moves bytes between the disk and nothing. */
export function isDiskOnly(type: string): boolean {
  return isCeiling(type) || type === 'dd';
}

/** How many times as fast as QEMU's best way with the same number of channels. */
function ratioCell(one: Series, series: Series[], runs: Run[]): string {
  if (!one.type.startsWith('mapram')) return '';
  const theirs = series.find(({ type, channels }) => type === DIRECT_STOCK_TYPE && channels === one.channels);
  return theirs === undefined ? '' : (speedRatio(runs, one, theirs)?.toFixed(2) ?? '');
}

/** The table for a terminal. */
export function plainTable(table: Table): string {
  const widths = columnWidths(table);
  return table
    .map((row) =>
      row
        .map((cell, at) => padded(cell, at, widths))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** The table for a Markdown document. */
export function markdownTable(table: Table): string {
  const widths = columnWidths(table);
  const line = (row: string[]) => `| ${row.map((cell, at) => padded(cell, at, widths)).join(' | ')} |`;
  const rule = `|${widths.map((width, at) => (at === 0 ? '-'.repeat(width + 2) : `${'-'.repeat(width + 1)}:`)).join('|')}|`;
  const [head = [], ...rows] = table;
  return [line(head), rule, ...rows.map(line)].join('\n');
}

function columnWidths(table: Table): number[] {
  return (table[0] ?? []).map((_, at) => Math.max(...table.map((row) => row[at]?.length ?? 0)));
}

function padded(cell: string, at: number, widths: number[]): string {
  return at === 0 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0);
}
