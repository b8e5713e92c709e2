import type { CliReport } from '../test/support/cli.ts';
import { CLI } from '../test/support/paths.ts';
import type { Qemu } from '../test/support/qemu.ts';
import { type Finished, processCpuSeconds, runTimed } from './cpu.ts';
import type { CommandStart, Measurement, Stage } from './measurement.ts';
import { median } from './statistics.ts';

/** How images are read and written by mapram. */
export const ENGINES = ['io-uring', 'tokio-uring', 'blocking'] as const;

/** Whether pages pass through mapram's own buffers: where that serves, wherever possible, or only where nothing else will do. */
export const COPIES = ['auto', 'always', 'never'] as const;
export type Copy = (typeof COPIES)[number];

/** A way of running mapram. */
export interface MapramWay {
  engine: string;
  copy: Copy;
  channels: number;
}

/** How the table names mapram, whatever its channels. */
export function mapramType({ engine, copy }: Omit<MapramWay, 'channels'>): string {
  return `mapram${engine === 'auto' ? '' : ` ${engine}`}${copy === 'auto' ? '' : `, copy ${copy}`}`;
}

/** What `mapram --version` costs, which does nothing: mostly the start of Node. */
export async function measureCommandStart(): Promise<CommandStart> {
  const runs: Finished[] = [];
  for (let run = 0; run < 9; run++) runs.push(await runTimed([process.execPath, CLI, '--version']));
  return {
    milliseconds: median(runs.map(({ milliseconds }) => milliseconds)),
    cpuSeconds: median(runs.map(({ cpuSeconds }) => cpuSeconds)),
  };
}

/** Runs `mapram save` or `mapram restore`. The time of a save is from its report, that of a restore the command's but for its start. */
export async function measureMapram(
  command: 'save' | 'restore',
  { engine, copy, channels }: MapramWay,
  { workload: { dataBytes }, start }: Stage,
  guest: Qemu,
  image: string,
): Promise<Omit<Measurement, 'kernelCpuSeconds'>> {
  const words = [
    ...[command, '--channels', String(channels), '--engine', engine],
    ...(copy === 'auto' ? [] : ['--copy', copy]),
    ...(command === 'save' ? [] : ['--then', 'pause']),
    ...['--qmp', guest.socket, image, '--json', '--quiet'],
  ];
  const before = processCpuSeconds(guest.pid);
  const finished = await runTimed([process.execPath, CLI, ...words]);
  if (finished.status !== 0)
    throw new Error(`mapram ${words.join(' ')}: ${finished.status}\n${finished.stdout}\n${finished.stderr}`);
  const report = JSON.parse(finished.stdout) as CliReport;
  if (report.durationMs === undefined) throw new Error('mapram told no duration');
  return {
    // A restore's report leaves out what comes before the first write; QEMU's time has it inside: image and bitmap are read.
    milliseconds: command === 'save' ? report.durationMs : finished.milliseconds - start.milliseconds,
    cpuSeconds: finished.cpuSeconds + processCpuSeconds(guest.pid) - before,
    engineCpuSeconds: finished.cpuSeconds - start.cpuSeconds,
    source: sourceOf(report),
    dataBytes,
    details: { commandMilliseconds: finished.milliseconds, commandCpuSeconds: finished.cpuSeconds, report },
  };
}

/** Where most pages were when the disk took them: in the guest's own memory, or in a buffer that they were copied to. */
export function sourceOf({ copiedBytes, dataBytes }: Pick<CliReport, 'copiedBytes' | 'dataBytes'>): string {
  return Number(copiedBytes) < Number(dataBytes) / 2 ? 'memory' : 'buffers';
}
