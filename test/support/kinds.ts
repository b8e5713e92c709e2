import { closeSync, ftruncateSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from './cleanup.ts';
import { ext4, hugetlbfs, IS_ROOT } from './filesystem.ts';
import { reserveHugePages } from './hugepages.ts';
import { diskDirectory, memoryDirectory } from './paths.ts';

/** RAM of the guests of the matrix. */
export const GUEST_MIB = 192;

/** A way of placing a guest's RAM. */
export interface GuestKind {
  name: string;
  machine: 'pc' | 'q35';
  /**
   * Gets ready what all guests of this kind share, such as a mounted file system.
   *
   * @returns a maker of QEMU's options, each call with memory of its own; or why this host cannot have the kind.
   */
  prepare: (cleanup: Cleanup) => MemoryMaker | { unavailable: string };
}

/** What a file holds before it becomes a guest's RAM: what the kind says, nothing, or 0xA5 throughout. */
export type Content = 'usual' | 'nothing' | 'stale';

/** Options that give one more guest its RAM until `cleanup` runs. */
export type MemoryMaker = (cleanup: Cleanup, content?: Content) => string[];

/** Every kind of the matrix; pc and q35 take turns. */
export const KINDS: GuestKind[] = [
  { name: 'private', machine: 'q35', prepare: () => () => [] },
  {
    name: 'ram share=on',
    machine: 'pc',
    prepare: () => () => ['-object', `memory-backend-ram,id=ram0,size=${GUEST_MIB}M,share=on`],
  },
  {
    name: 'file share=on on tmpfs',
    machine: 'q35',
    prepare: (cleanup) => fileMaker(memoryDirectory(cleanup), 'share=on', () => []),
  },
  {
    name: 'file share=on on ext4',
    machine: 'pc',
    prepare: (cleanup) =>
      IS_ROOT
        ? fileMaker(ext4(cleanup, 1024), 'share=on', () => [])
        : { unavailable: 'mounting an ext4 of its own needs root' },
  },
  {
    name: 'file share=off over a filled file',
    machine: 'q35',
    prepare: (cleanup) => fileMaker(diskDirectory(cleanup), 'share=off', someExtents),
  },
  {
    name: 'memfd',
    machine: 'pc',
    prepare: () => () => ['-object', `memory-backend-memfd,id=ram0,size=${GUEST_MIB}M,share=on`],
  },
  { name: 'hugetlbfs share=on', machine: 'q35', prepare: (cleanup) => hugeMaker(cleanup, 'share=on') },
  { name: 'hugetlbfs share=off', machine: 'pc', prepare: (cleanup) => hugeMaker(cleanup, 'share=off') },
  {
    name: 'two NUMA nodes',
    machine: 'q35',
    prepare: () => () => [
      ...['-smp', '2', '-object', `memory-backend-ram,id=node0,size=${GUEST_MIB / 2}M`],
      ...['-object', `memory-backend-memfd,id=node1,size=${GUEST_MIB / 2}M,share=on`],
      ...['-numa', 'node,nodeid=0,memdev=node0,cpus=0', '-numa', 'node,nodeid=1,memdev=node1,cpus=1'],
    ],
  },
];

/** An extent of a file and the byte it is filled with. */
type Fill = [offset: number, length: number, byte: number];

/** Half of the file holds data, in runs that no page of 2 MiB or chunk of 4 MiB ends with. */
function someExtents(): Fill[] {
  const runs: Fill[] = [];
  for (let at = 0; at + (3 << 20) < GUEST_MIB << 20; at += 6 << 20)
    runs.push([at + 4096, (3 << 20) - 8192, 0x5a]);
  return runs;
}

function fileMaker(directory: string, share: string, usual: () => Fill[]): MemoryMaker {
  const fills = (content: Content): Fill[] => {
    if (content === 'nothing') return [];
    return content === 'stale' ? [[0, GUEST_MIB << 20, 0xa5]] : usual();
  };
  let made = 0;
  return (cleanup, content = 'usual') => {
    const path = join(directory, `memory-${made++}`);
    cleanup.add(() => rmSync(path));
    fillFile(path, fills(content));
    return ['-object', `memory-backend-file,id=ram0,size=${GUEST_MIB}M,mem-path=${path},${share}`];
  };
}

function fillFile(path: string, fills: Fill[]): void {
  const file = openSync(path, 'w');
  for (const [offset, length, byte] of fills) writeSync(file, Buffer.alloc(length, byte), 0, length, offset);
  ftruncateSync(file, GUEST_MIB << 20);
  closeSync(file);
}

function hugeMaker(cleanup: Cleanup, share: string): MemoryMaker | { unavailable: string } {
  if (!IS_ROOT) return { unavailable: 'reserving huge pages needs root' };
  // Two guests at a time, and for share=off the file's pages besides the guest's own copies.
  const refused = reserveHugePages(cleanup, 4 * GUEST_MIB);
  return refused === undefined ? fileMaker(hugetlbfs(cleanup), share, () => []) : { unavailable: refused };
}
