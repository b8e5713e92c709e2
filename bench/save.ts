import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Qemu } from '../test/support/qemu.ts';
import { checkImage } from './check-image.ts';
import { checkStream } from './check-stream.ts';
import { processCpuSeconds } from './cpu.ts';
import type { SourceGuest, SourceGuests } from './guests.ts';
import { type MapramWay, mapramType, measureMapram } from './mapram.ts';
import { type Contender, type Measurement, type Stage, withKernelTime } from './measurement.ts';
import { configureStock, readyAgain, type StockWay, stockSaveDurably } from './stock-save.ts';
import type { Workload } from './workload.ts';

/** What saves are measured with. */
export interface SaveStage extends Stage {
  guests: SourceGuests;
}

/** `mapram save`, the whole command. */
export function mapramSave(stage: SaveStage, way: MapramWay): Contender {
  const image = join(stage.directory, 'mapram.image');
  return {
    type: mapramType(way),
    channels: way.channels,
    run: () =>
      stage.guests.withGuest('ours', (guest) =>
        withImage(image, async () => {
          const measurement = await measureSave(guest, () =>
            measureMapram('save', way, stage, guest.qemu, image),
          );
          await checkImage(stage.workload, guest.qemu, image);
          return measurement;
        }),
      ),
  };
}

/** QEMU's own save. */
export function stockSave(stage: SaveStage, { method, ...channels }: StockWay): Contender {
  const image = join(stage.directory, 'qemu.image');
  return {
    type: method.type,
    ...channels,
    run: () =>
      stage.guests.withGuest('theirs', (guest) =>
        withImage(image, async () => {
          await configureStock(guest.qemu, method, channels.channels ?? 1);
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
