import { type InspectOptions, type InspectReport, inspect } from '../inspect.ts';
import { formatBytes, formatCount, plural } from '../units.ts';
import { type CommandResult, succeeded } from './outcome.ts';

/** Runs `mapram inspect`. */
export async function runInspect(image: string, { offset }: InspectOptions): Promise<CommandResult> {
  const report = await inspect(image, { offset });
  return succeeded(report, describeInspection(report));
}

/** An inspected image, as a few lines and a table of its RAM blocks. */
export function describeInspection(report: InspectReport): string {
  const lines = [
    `image      ${report.image}${report.offset === 0 ? '' : ` at offset ${formatCount(report.offset)}`}`,
    `file       ${formatBytes(report.fileBytes)} long, ${formatBytes(report.allocatedBytes)} on disk`,
    `machine    ${report.machine}, ${runStateText(report.runState)}`,
    `needs      ${report.capabilities.join(', ')}`,
    `guest      ${formatBytes(report.guestBytes)} of RAM in ${plural(report.blocks.length, 'block')}`,
    `data       ${formatBytes(report.dataBytes)}; ${formatCount(report.zeroPages)} of ${formatCount(report.pages)} pages are zero`,
    `devices    ${formatBytes(report.deviceStateBytes)} of state, ${report.hasVmDescription ? 'described' : 'not described'} by JSON`,
  ];
  if (report.uuid !== undefined) lines.push(`uuid       ${report.uuid}`);
  if (report.trailingBytes > 0)
    lines.push(`behind it  ${formatBytes(report.trailingBytes)} that are not part of the image`);
  return `${[...lines, '', ...blockTable(report)].join('\n')}\n`;
}

function runStateText(runState: string | undefined): string {
  return runState === undefined ? 'state not recorded' : `saved while ${runState}`;
}

function blockTable({ blocks }: InspectReport): string[] {
  const rows = [
    ['block', 'length', 'data pages', 'of', 'bitmap at', 'pages at'],
    ...blocks.map((block) => [
      block.name,
      formatBytes(block.length),
      formatCount(block.dataPages),
      formatCount(block.pages),
      `0x${block.bitmapOffset.toString(16)}`,
      `0x${block.pagesOffset.toString(16)}`,
    ]),
  ];
  const width = (column: number): number => Math.max(...rows.map((row) => row[column]?.length ?? 0));
  const pad = (cell: string, i: number): string =>
    i === 0 ? cell.padEnd(width(i)) : cell.padStart(width(i));
  return rows.map((row) => row.map(pad).join('  '));
}
