import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { reserveHugePages } from '../test/support/hugepages.ts';
import { type Finished, runTimed } from './cpu.ts';
import { type Contender, type Measurement, withKernelTime } from './measurement.ts';
import { withCleanup } from './with-cleanup.ts';
import type { Workload } from './workload.ts';

/** How fio is told to write or read: bytes of a request, requests in flight in a job, jobs. */
interface Shape {
  requestMiB: number;
  depth: number;
  jobs: number;
}

// A ceiling is the best that the disk can do, so shapes are tried that suit virtual disks, NVMe drives and arrays. The file gets its
// blocks beforehand; writing into holes was within 3 % of that on the disks here.
const SHAPES: Shape[] = [
  { requestMiB: 1, depth: 16, jobs: 1 },
  { requestMiB: 4, depth: 8, jobs: 1 },
  { requestMiB: 4, depth: 8, jobs: 2 },
];

/** True for types that measure the disk alone. */
export function isCeiling(type: string): boolean {
  return type.startsWith('fio ');
}

/** fio with io_uring and direct I/O, each of several shapes: the best of them is the disk's ceiling. It moves the workload's data bytes. */
export function fioCeilings(
  operation: 'save' | 'restore',
  workload: Workload,
  directory: string,
): Contender[] {
  const file = join(directory, 'fio.data');
  const direction = operation === 'save' ? 'write' : 'read';
  return SHAPES.map((shape) => ({
    type: `fio ${shape.requestMiB} MiB x ${shape.depth} x ${shape.jobs}`,
    run: () =>
      withoutFile(file, () =>
        withCleanup(async (cleanup) => {
          // Buffers in huge pages keep requests whole on their way to the device. They are given back at once: nobody else shall
          // find any. Where the host has none, fio must do with small pages, and the results say so.
          const refused = reserveHugePages(cleanup, 2 * shape.requestMiB * shape.depth * shape.jobs);
          const command = (to: 'write' | 'read') =>
            fioCommand(file, workload.dataBytes, to, shape, refused === undefined);
          if (operation === 'restore') expectSuccess(await runTimed(command('write')));
          const measurement = await withKernelTime(() =>
            measureFio(command(direction), workload.dataBytes, direction),
          );
          return { ...measurement, details: { buffers: refused ?? '2 MiB pages' } };
        }),
      ),
  }));
}

function fioCommand(
  file: string,
  dataBytes: number,
  direction: 'write' | 'read',
  shape: Shape,
  inHugePages: boolean,
): string[] {
  const request = shape.requestMiB << 20;
  const jobBytes = Math.ceil(dataBytes / shape.jobs / request) * request;
  const where = `--filename=${file} --size=${jobBytes} --offset_increment=${jobBytes} --filesize=${jobBytes * shape.jobs}`;
  const how = `--rw=${direction} --bs=${request} --iodepth=${shape.depth} --numjobs=${shape.jobs} --fallocate=posix`;
  const memory = inHugePages ? '--iomem=shmhuge --hugepage-size=2M' : '--iomem=malloc';
  const always =
    '--name=ceiling --ioengine=io_uring --direct=1 --registerfiles=1 --fixedbufs=1 --end_fsync=1 --thread --group_reporting';
  return ['fio', ...`${always} ${where} ${how} ${memory} --output-format=json`.split(' ')];
}

interface FioJob {
  read: FioDirection;
  write: FioDirection;
}

interface FioDirection {
  io_bytes: number;
  /** Milliseconds, with the sync at the end and without fio's own start. */
  runtime: number;
}

async function measureFio(
  command: string[],
  dataBytes: number,
  direction: 'write' | 'read',
): Promise<Omit<Measurement, 'kernelCpuSeconds'>> {
  const finished = expectSuccess(await runTimed(command));
  const [job] = (JSON.parse(finished.stdout) as { jobs: FioJob[] }).jobs;
  if (job === undefined || job[direction].io_bytes < dataBytes)
    throw new Error(`fio moved too little:\n${finished.stdout}`);
  const { io_bytes: moved, runtime } = job[direction];
  return { milliseconds: runtime, cpuSeconds: finished.cpuSeconds, dataBytes: moved, details: {} };
}

/** dd, one direct request at a time, as a floor: it moves the workload's data bytes, from zeros or to nowhere. */
export function ddFloor(operation: 'save' | 'restore', workload: Workload, directory: string): Contender {
  const file = join(directory, 'dd.data');
  const blocks = ['bs=4M', `count=${Math.ceil(workload.dataBytes / (4 << 20))}`];
  const write = ['dd', 'if=/dev/zero', `of=${file}`, ...blocks, 'oflag=direct', 'conv=fsync'];
  const read = ['dd', `if=${file}`, 'of=/dev/null', ...blocks, 'iflag=direct'];
  return {
    type: 'dd',
    run: () =>
      withoutFile(file, async () => {
        if (operation === 'restore') expectSuccess(await runTimed(write));
        return withKernelTime(() => measureDd(operation === 'save' ? write : read));
      }),
  };
}

async function measureDd(command: string[]): Promise<Omit<Measurement, 'kernelCpuSeconds'>> {
  const finished = expectSuccess(await runTimed(command));
  const moved = /^(\d+) bytes/m.exec(finished.stderr);
  if (moved === null) throw new Error(`dd told no bytes: ${finished.stderr}`);
  return {
    milliseconds: finished.milliseconds,
    cpuSeconds: finished.cpuSeconds,
    dataBytes: Number(moved[1]),
    details: {},
  };
}

function expectSuccess(finished: Finished): Finished {
  if (finished.status !== 0)
    throw new Error(`status ${finished.status}: ${finished.stdout}\n${finished.stderr}`);
  return finished;
}

async function withoutFile<T>(file: string, use: () => Promise<T>): Promise<T> {
  rmSync(file, { force: true });
  try {
    return await use();
  } finally {
    rmSync(file, { force: true });
  }
}
