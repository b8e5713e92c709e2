import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { CliReport } from '../test/support/cli.ts';
import { CLI } from '../test/support/paths.ts';
import type { Qemu } from '../test/support/qemu.ts';
import { checkImage } from './check-image.ts';
import { checkStream } from './check-stream.ts';
import { type Finished, processCpuSeconds, runTimed } from './cpu.ts';
import type { SourceGuest, SourceGuests } from './guests.ts';
import { type Contender, type Measurement, withKernelTime } from './measurement.ts';
import { configureStock, readyAgain, type StockMethod, stockSaveDurably } from './stock-save.ts';
import type { Workload } from './workload.ts';

/** How images are read and written by mapram. */
export const ENGINES = ['io-uring', 'tokio-uring', 'blocking'] as const;

/** What saves are measured with. */
export interface SaveStage {
  workload: Workload;
  guests: SourceGuests;
  /** Where images go. */
  directory: string;
}

/** `mapram save`, the whole command, by `engine` over `channels`. */
export function mapramSave(stage: SaveStage, engine: string, channels: number): Contender {
  const image = join(stage.directory, 'mapram.image');
  const command = ['save', '--channels', String(channels), '--engine', engine];
  return {
    type: mapramType(engine),
    channels,
    run: () =>
      stage.guests.withGuest('ours', (guest) =>
        withImage(image, async () => {
          const measurement = await measureSave(guest, () =>
            measureMapram(guest.qemu, stage.workload, [...command, '--qmp', guest.qemu.socket, image]),
          );
          await checkImage(stage.workload, guest.qemu, image);
          return measurement;
        }),
      ),
  };
}

/** How the table names mapram with an engine. */
export function mapramType(engine: string): string {
  return engine === 'auto' ? 'mapram' : `mapram ${engine}`;
}

/** Runs mapram on a guest and takes the times from its own report; what it costs includes Node's start. */
export async function measureMapram(
  guest: Qemu,
  workload: Workload,
  words: string[],
): Promise<Omit<Measurement, 'kernelCpuSeconds'>> {
  const before = processCpuSeconds(guest.pid);
  const finished = await runTimed([process.execPath, CLI, ...words, '--json', '--quiet']);
  const report = parseReport(finished, words);
  if (report.durationMs === undefined) throw new Error('mapram told no duration');
  return {
    milliseconds: report.durationMs,
    cpuSeconds: finished.cpuSeconds + processCpuSeconds(guest.pid) - before,
    dataBytes: workload.dataBytes,
    details: { commandMilliseconds: finished.milliseconds, commandCpuSeconds: finished.cpuSeconds, report },
  };
}

function parseReport(finished: Finished, words: string[]): CliReport {
  const failure = `mapram ${words.join(' ')}: ${finished.status}\n${finished.stdout}\n${finished.stderr}`;
  if (finished.status !== 0) throw new Error(failure);
  return JSON.parse(finished.stdout) as CliReport;
}

/** QEMU's own ways of saving: those with channels once for each count, the others once. */
export function stockSaves(stage: SaveStage, methods: StockMethod[], channels: number[]): Contender[] {
  return methods.flatMap((method) =>
    method.multifd
      ? channels.map((count) => stockSave(stage, method, count))
      : [stockSave(stage, method, undefined)],
  );
}

function stockSave(stage: SaveStage, method: StockMethod, channels: number | undefined): Contender {
  const image = join(stage.directory, 'qemu.image');
  return {
    type: method.type,
    ...(channels === undefined ? {} : { channels }),
    run: () =>
      stage.guests.withGuest('theirs', (guest) =>
        withImage(image, async () => {
          await configureStock(guest.qemu, method, channels ?? 1);
          const measurement = await measureSave(guest, () =>
            measureStock(guest.qemu, stage.workload, () => stockSaveDurably(guest.qemu, image)),
          ).finally(() => readyAgain(guest.qemu));
          if (method.mappedRam)
            await checkImage(stage.workload, guest.qemu, image, method.directIo ? 'direct' : 'cached');
          else checkStream(stage.workload, image);
          return measurement;
        }),
      ),
  };
}

/** Adds what only saves have: how long the guest stood still, and how much memory the host lost by it. */
async function measureSave(
  { memoryFile }: SourceGuest,
  measure: () => Promise<Omit<Measurement, 'kernelCpuSeconds'>>,
): Promise<Measurement> {
  const allocated = () => (memoryFile === undefined ? 0 : statSync(memoryFile).blocks * 512);
  const before = allocated();
  const measurement = await withKernelTime(measure);
  return {
    ...measurement,
    pauseMilliseconds: measurement.milliseconds,
    ...(memoryFile === undefined ? {} : { memoryGrownBytes: allocated() - before }),
  };
}

/** Measures QEMU's own save or restore, done by `work`, which returns the CPU seconds that others spent on it. */
export async function measureStock(
  guest: Qemu,
  workload: Workload,
  work: () => Promise<number>,
): Promise<Omit<Measurement, 'kernelCpuSeconds'>> {
  const cpu = processCpuSeconds(guest.pid);
  const began = performance.now();
  const others = await work();
  const milliseconds = performance.now() - began;
  const cpuSeconds = processCpuSeconds(guest.pid) - cpu + others;
  return { milliseconds, cpuSeconds, dataBytes: workload.dataBytes, details: {} };
}

/** Runs `use` with nothing at `image`, and removes what it put there. */
async function withImage<T>(image: string, use: () => Promise<T>): Promise<T> {
  rmSync(image, { force: true });
  try {
    return await use();
  } finally {
    rmSync(image, { force: true });
  }
}
