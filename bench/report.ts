import { type Chart, drawChart, type Line } from './chart.ts';
import { isCeiling } from './disk.ts';
import type { Disk, Host } from './host.ts';
import { type Session, sessionName, type What } from './session.ts';
import { DIRECT_STOCK_TYPE } from './stock-save.ts';
import { cpuRatio, type Series, speedRatio, summarize } from './summary.ts';
import { isDiskOnly, markdownTable, seriesTable } from './table.ts';

/** A session with all that its figures depend on: what is written as JSON. */
export interface Results {
  schemaVersion: 2;
  host: Host;
  disk: Disk;
  session: Session;
  series: Series[];
}

/** Puts a session and what it ran on together. */
export function collectResults(host: Host, disk: Disk, session: Session): Results {
  return { schemaVersion: 2, host, disk, session, series: summarize(session.runs, session.guestBytes) };
}

/** Best against best: mapram's fastest channel count, QEMU's with direct I/O, and whatever else of QEMU's was fastest. */
export function headline({ session: { runs }, series }: Results): string {
  const fastest = (isMeant: (type: string) => boolean) =>
    series.filter(({ type }) => isMeant(type)).toSorted((a, b) => a.milliseconds - b.milliseconds)[0];
  const ours = fastest((type) => type.startsWith('mapram'));
  const direct = fastest((type) => type === DIRECT_STOCK_TYPE);
  const best = fastest((type) => type.startsWith('QEMU'));
  if (ours === undefined || direct === undefined) return '';
  const against = (theirs: Series) => {
    const at = theirs.channels === undefined ? '' : ` at ${theirs.channels}`;
    const cpu = cpuRatio(runs, ours, theirs)?.toFixed(2);
    return `${speedRatio(runs, ours, theirs)?.toFixed(2)} times as fast as ${theirs.type}${at}, with ${cpu} of its CPU time`;
  };
  const others = best === undefined || best === direct ? '' : `; it is ${against(best)}, QEMU's fastest here`;
  return `${ours.type} at ${ours.channels} channels is ${against(direct)}${others} (medians of ratios within rounds).`;
}

/** The report on a session in Markdown; it shows the charts of {@link drawCharts} from the same directory. */
export function writeReport(results: Results): string {
  const { session, series } = results;
  const voided = session.runs.filter(({ voided: reason }) => reason !== undefined);
  return [
    `# ${describeWhat(session)}, ${session.guestBytes / 2 ** 20} MiB`,
    headline(results),
    ...Object.keys(drawCharts(results)).map((name) => `![${name}](${name})`),
    markdownTable(seriesTable(series, session.runs, session.guestBytes)),
    METHOD,
    machineFacts(results),
    ...voided.map(
      ({ type, channels, round, voided: reason }) =>
        `- **void**: ${type}, ${channels ?? 'no'} channels, round ${round}: ${reason}`,
    ),
  ]
    .filter((part) => part !== '')
    .join('\n\n')
    .concat('\n');
}

/** What was measured, in words. */
export function describeWhat({ operation, workload, memory, state }: What): string {
  const pages = { small: '', huge: 'huge ', hugetlb: 'hugetlb ' }[memory ?? 'small'];
  if (state !== undefined) return `${operation} ${workload} into ${state} ${pages}memory`;
  return `${operation} ${workload}${pages === '' ? '' : `, ${pages}memory`}`;
}

const METHOD = `MB/s (10^6) and pages/s count all of the guest's RAM; fio and dd move its data pages only and show their own rate, and
*% of ceiling* compares the rate of data with the best fio shape. Figures are medians over the rounds, with the slowest and the fastest run beside them. A save ends when the image
is on the disk: fdatasync is inside everybody's time, for QEMU too, which leaves it out itself. A restore by mapram is the whole
command but for the start of Node. CPU is user and system time of all processes that took part (of mapram the whole command with the start of Node, which is spared NODE_EXTRA_CA_CERTS);
*engine* is that time without QEMU's share in mapram's work and without the start of Node (the CPU time of \`mapram --version\`); *kernel* is that of kernel threads meanwhile. Guests were stopped before, so that the pause of a save is all of its time. *x QEMU* is the speed against
${DIRECT_STOCK_TYPE} with as many channels, formed within rounds. Every image, and every restored guest's memory, was compared with what it must hold.`;

/** What a figure cannot be judged without, as a list in Markdown. */
export function hostFacts(host: Host): string {
  const versions = Object.entries(host.versions).map(([name, version]) => `${name} ${version}`);
  return [
    `- ${host.cpu}, ${host.cpus} CPUs, ${(host.memoryBytes / 2 ** 30).toFixed(0)} GiB of memory; huge pages: private ${host.hugePages.private}, shared ${host.hugePages.shared}`,
    `- Linux ${host.kernel}, ${host.distribution}; ${versions.join(', ')}; commit ${host.commit}`,
  ].join('\n');
}

function machineFacts({ host, disk, session }: Results): string {
  const queue = Object.entries(disk.queue).map(([name, value]) => `${name} ${value}`);
  return [
    hostFacts(host),
    `- ${disk.fileSystem} (${disk.mountOptions}) on ${disk.device}${queue.length === 0 ? '' : `: ${queue.join(', ')}`}`,
    `- ${session.rounds} rounds, ${session.began}, ${(session.seconds / 60).toFixed(1)} minutes in all; every run is in the JSON beside this file`,
  ].join('\n');
}

/** The charts of a session by file name: throughput and CPU time against channels, ours and theirs. */
export function drawCharts({ session, series }: Results): Record<string, string> {
  const counts = [...new Set([...session.channels, ...(session.stockChannels ?? [])])].sort((a, b) => a - b);
  const places = counts.map(String);
  const what = `${session.operation}, ${session.workload}, ${session.guestBytes / 2 ** 20} MiB`;
  const lines = (figure: (one: Series) => number) => chartLines(series, counts, figure);
  const charts: Record<string, Chart> = {
    throughput: {
      ...{ title: `Throughput: ${what}`, xTitle: 'channels', yTitle: 'MB/s of guest RAM', places },
      lines: [...lines(({ bytesPerSecond }) => bytesPerSecond / 1e6), ...ceilingLine(session, series)],
    },
    cpu: {
      ...{
        title: `CPU time: ${what}`,
        xTitle: 'channels',
        yTitle: 'CPU-seconds per GiB of guest RAM',
        places,
      },
      lines: lines(({ cpuSecondsPerGiB }) => cpuSecondsPerGiB),
    },
  };
  return Object.fromEntries(
    Object.entries(charts).map(([name, chart]) => [`${sessionName(session)}-${name}.svg`, drawChart(chart)]),
  );
}

const OUR_COLORS = ['#1f5fbf', '#17a2b8', '#6f42c1', '#20803a'];
const THEIR_COLORS = ['#e8700a', '#c0392b', '#b8860b', '#8d6e63'];

/** A line for each type; those without channels are level and dashed. */
function chartLines(series: Series[], channels: number[], figure: (one: Series) => number): Line[] {
  const types = [...new Set(series.map(({ type }) => type).filter((type) => !isDiskOnly(type)))];
  const ours = types.filter((type) => type.startsWith('mapram'));
  const theirs = types.filter((type) => !ours.includes(type)).toSorted((a, b) => b.length - a.length);
  return [...ours, ...theirs].map((type) => {
    const color =
      (ours.includes(type) ? OUR_COLORS[ours.indexOf(type)] : THEIR_COLORS[theirs.indexOf(type)]) ?? '#555';
    const own = series.filter((one) => one.type === type);
    const level = own.find((one) => one.channels === undefined);
    if (level !== undefined) return { name: type, values: figure(level), color, dashed: true };
    const values = channels
      .map((count) => own.find((one) => one.channels === count))
      .map((one) => one && figure(one));
    return { name: type, values, color };
  });
}

/** The disk's ceiling, as the guest's RAM would pass at it: zero pages cost the disk nothing. */
function ceilingLine({ guestBytes, dataBytes }: Session, series: Series[]): Line[] {
  const best = series
    .filter(({ type }) => isCeiling(type))
    .toSorted((a, b) => b.dataBytesPerSecond - a.dataBytesPerSecond)[0];
  if (best === undefined) return [];
  const values = ((best.dataBytesPerSecond / 1e6) * guestBytes) / dataBytes;
  return [{ name: "the disk's ceiling (fio)", values, color: '#222', dashed: true }];
}
