import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import { chmodSync, closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ACCELERATOR, guestOptions, KVM_DESCRIPTOR } from './accelerator.ts';
import type { Cleanup } from './cleanup.ts';
import { diskDirectory, QEMU } from './paths.ts';
import { Qmp } from './qmp.ts';
import { fillRam } from './ram.ts';

/** What a QEMU is started with. */
export interface QemuOptions {
  machine: 'pc' | 'q35';
  /** RAM in MiB. */
  mebibytes: number;
  /** Options that place the RAM (guest kinds give them). */
  memory?: string[];
  /** MiB that are filled when the guest's program runs; without it the guest stays in its firmware. */
  program?: number;
  /** Started as `-incoming defer`. */
  incoming?: boolean;
  /** Started with -S. */
  paused?: boolean;
  /** Words before the emulator's name, such as setpriv with its options. */
  prefix?: string[];
  /** Under KVM: handed an open /dev/kvm, for a user who may not open it. */
  inheritsKvm?: boolean;
  /** Further options. */
  extra?: string[];
}

/** A running QEMU with three sockets: one for the product, two for the test. */
export class Qemu {
  readonly child: ChildProcess;
  /** The QMP socket that is mapram's. */
  readonly socket: string;
  /** A second QMP socket, left free for a second client. */
  readonly otherSocket: string;
  /** The test's own QMP connection. */
  readonly qmp: Qmp;
  /** Directory of sockets and logs. */
  readonly directory: string;

  private constructor(child: ChildProcess, directory: string, qmp: Qmp) {
    this.child = child;
    this.directory = directory;
    this.socket = join(directory, 'mapram.sock');
    this.otherSocket = join(directory, 'other.sock');
    this.qmp = qmp;
  }

  /** Starts QEMU; it is killed by `cleanup`, and with this process. */
  static async start(options: QemuOptions, cleanup: Cleanup): Promise<Qemu> {
    const directory = join(diskDirectory(cleanup), 'qemu');
    // QEMU may run as another user: its sockets stay reachable, and it can write its console.
    chmodSync(dirname(directory), 0o755);
    mkdirSync(directory);
    chmodSync(directory, 0o777);
    writeFileSync(join(directory, 'serial'), '');
    chmodSync(join(directory, 'serial'), 0o666);
    const command = [
      ...(options.prefix ?? []),
      'setpriv',
      '--pdeathsig',
      'KILL',
      QEMU,
      ...qemuArguments(options, directory),
    ];
    const child = startProcess(command, isHandedKvm(options));
    const log = join(directory, 'stderr');
    writeFileSync(log, '');
    child.stderr?.on('data', (text) => writeFileSync(log, text, { flag: 'a' }));
    const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    cleanup.add(async () => {
      child.kill('SIGKILL');
      await ended;
    });
    const died = ended.then(() => {
      throw new Error(`QEMU ended: ${readFileSync(log, 'utf8')}`);
    });
    died.catch(() => {});
    const qmp = await Promise.race([Qmp.connect(join(directory, 'test.sock')), died]).catch(async (error) => {
      // A QEMU that ends closes its socket first; what it complained of says more.
      await Promise.race([died, sleep(1000)]);
      throw error;
    });
    cleanup.add(() => qmp.close());
    const qemu = new Qemu(child, directory, qmp);
    if (isFilledByUs(options)) {
      await fillRam(qemu, options.program);
      if (!options.paused) await qmp.execute('cont');
    }
    return qemu;
  }

  /** QEMU's process. */
  get pid(): number {
    if (this.child.pid === undefined) throw new Error('QEMU was not started');
    return this.child.pid;
  }

  /** All that the guest wrote to its serial console so far. */
  serial(): string {
    return readFileSync(join(this.directory, 'serial'), 'latin1');
  }

  /** What QEMU itself complained of so far. */
  complaints(): string {
    return readFileSync(join(this.directory, 'stderr'), 'utf8');
  }

  /** True until the process ended. */
  alive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }
}

function qemuArguments(options: QemuOptions, directory: string): string[] {
  const backend = options.memory ?? [];
  return [
    ...guestOptions(options.program, isHandedKvm(options)),
    ...['-nodefaults', '-display', 'none', '-m', String(options.mebibytes)],
    ...[
      '-machine',
      backend.some((word) => word.includes('id=ram0,'))
        ? `${options.machine},memory-backend=ram0`
        : options.machine,
    ],
    ...backend,
    ...['-vga', 'std', '-device', 'e1000', '-device', 'virtio-rng-pci'],
    ...['-chardev', `file,id=serial,path=${join(directory, 'serial')}`, '-serial', 'chardev:serial'],
    ...['test', 'mapram', 'other'].flatMap((name) => monitor(name, directory)),
    ...(options.incoming ? ['-incoming', 'defer'] : []),
    ...(options.paused || isFilledByUs(options) ? ['-S'] : []),
    ...(options.extra ?? []),
  ];
}

function monitor(name: string, directory: string): string[] {
  const chardev = `socket,id=${name},path=${join(directory, `${name}.sock`)},server=on,wait=off`;
  return ['-chardev', chardev, '-mon', `chardev=${name},mode=control`];
}

/** The program of a guest under KVM is too small to fill memory. */
function isFilledByUs(options: QemuOptions): options is QemuOptions & { program: number } {
  return ACCELERATOR === 'kvm' && options.program !== undefined && options.incoming !== true;
}

function isHandedKvm(options: QemuOptions): boolean {
  return ACCELERATOR === 'kvm' && options.inheritsKvm === true;
}

function startProcess([name, ...words]: string[], isHandedKvm: boolean): ChildProcess {
  const stdio: StdioOptions = ['ignore', 'ignore', 'pipe'];
  const kvm = isHandedKvm ? openSync('/dev/kvm', 'r+') : undefined;
  if (kvm !== undefined) stdio[KVM_DESCRIPTOR] = kvm;
  try {
    return spawn(name as string, words, { stdio: Array.from(stdio, (entry) => entry ?? 'ignore') });
  } finally {
    if (kvm !== undefined) closeSync(kvm);
  }
}
