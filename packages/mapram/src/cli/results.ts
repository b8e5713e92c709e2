import type { RestoreReport, SaveReport } from '../report.ts';
import { formatBytes, formatCount, formatDuration, formatRate, plural } from '../units.ts';

/** What a save did, in a few lines. */
export function describeSave(report: SaveReport): string {
  return describe('saved', report, `paused     ${formatDuration(report.pauseMs)}`);
}

/** What a restore did, in a few lines. */
export function describeRestore(report: RestoreReport): string {
  return describe('restored', report, `method     ${report.method}`);
}

const STATES = {
  running: 'the guest is running',
  paused: 'the guest is paused',
  gone: "the guest's QEMU has ended",
};

function describe(verb: string, report: SaveReport | RestoreReport, special: string): string {
  const { guestBytes, dataBytes, zeroPages, pages, blocks } = report;
  const way = report.direct ? 'direct I/O' : 'through the page cache';
  // What QEMU does with its own memory is not ours to say.
  const copied = report.engine === 'qemu' ? '' : `${copiedText(report.copiedBytes)}, `;
  const lines = [
    `${verb.padEnd(10)} ${report.image}`,
    `guest      ${formatBytes(guestBytes)} of RAM in ${plural(blocks.length, 'block')}`,
    `data       ${formatBytes(dataBytes)}; ${formatCount(zeroPages)} of ${formatCount(pages)} pages are zero`,
    `speed      ${formatRate(report.bytesPerSecond)} of data in ${formatDuration(report.durationMs)}, ${report.cpuSeconds.toFixed(2)} CPU seconds`,
    special,
    `engine     ${report.engine}, ${way}, ${copied}${plural(report.channels, 'channel')}, queue depth ${report.queueDepth}`,
  ];
  if (report.guestState !== undefined) lines.push(`state      ${STATES[report.guestState]}`);
  return `${lines.join('\n')}\n`;
}

function copiedText(bytes: number): string {
  return bytes === 0 ? 'nothing copied' : `${formatBytes(bytes)} copied`;
}
