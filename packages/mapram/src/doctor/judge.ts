import { formatBytes } from '../units.ts';
import { type Finding, fail, ok, warn } from './check.ts';

/** Enough locked memory for the buffers of the default queue on every channel thread of a small host. */
const WANTED_LOCKED_BYTES = 64 * 1024 * 1024;

/** Judges a kernel by its release, such as `6.1.0-30-amd64`. */
export function judgeKernel(text: string): Finding {
  const [major = 0, minor = 0] = text.split(/[.-]/).map(Number);
  const version = major * 1000 + minor;
  if (version < 5003) return fail(`Linux ${text}`, 'a kernel of 5.3 or later is needed, for pidfd_open');
  if (version < 6001) {
    return warn(`Linux ${text}`, 'from 6.1 on the kernel says which alignment direct I/O needs');
  }
  if (version < 6007) {
    return warn(`Linux ${text}`, 'from 6.7 on untouched private memory is found faster (PAGEMAP_SCAN)');
  }
  return ok(`Linux ${text}`);
}

/** Judges RLIMIT_MEMLOCK by the text of /proc/self/limits. */
export function judgeLockedMemory(limits: string, isPrivileged: boolean): Finding {
  if (isPrivileged) return ok('memory may be locked without limit (CAP_IPC_LOCK)');
  const soft = /^Max locked memory\s+(\S+)/m.exec(limits)?.[1] ?? 'unknown';
  if (soft === 'unlimited' || Number(soft) >= WANTED_LOCKED_BYTES)
    return ok(`locked memory is limited to ${soft}`);
  return warn(
    `locked memory is limited to ${soft} bytes, so I/O buffers are not registered with io_uring`,
    `raise it for a little less CPU time: ulimit -l ${WANTED_LOCKED_BYTES / 1024}, or LimitMEMLOCK= of systemd`,
  );
}

/** Judges Yama's ptrace_scope, which decides who may read another process's memory. */
export function judgePtrace(scope: string, isPrivileged: boolean): Finding {
  const level = Number(scope.trim());
  if (level >= 3) {
    return fail(
      `ptrace_scope is ${level}: no process may read another one's memory`,
      'it can be lowered only by a reboot; guests with shared memory files still work if their files can be opened',
    );
  }
  if (isPrivileged) return ok('the memory of other processes may be read (CAP_SYS_PTRACE)');
  if (level >= 1) {
    return warn(
      `ptrace_scope is ${level}: a user may not read the memory of processes that are not its own children`,
      'run mapram as root or with CAP_SYS_PTRACE, or set kernel.yama.ptrace_scope to 0',
    );
  }
  return ok("the memory of this user's own processes may be read");
}

/** The type of the file system that holds `path`, by the text of /proc/self/mountinfo. */
export function findFileSystem(mountinfo: string, path: string): string {
  const mounts = mountinfo.split('\n').map((line) => {
    const [mount = '', source = ''] = line.split(' - ');
    return { point: unescapeMount(mount.split(' ')[4] ?? ''), type: source.split(' ')[0] ?? '' };
  });
  const above = mounts.filter(
    ({ point }) => point !== '' && `${path}/`.startsWith(point === '/' ? '/' : `${point}/`),
  );
  // The nearest one; a later mount on the same point hides the earlier one.
  const longest = Math.max(...above.map(({ point }) => point.length));
  return above.findLast(({ point }) => point.length === longest)?.type ?? 'an unknown file system';
}

/** mountinfo writes blanks and the like as three octal digits. */
function unescapeMount(text: string): string {
  return text.replaceAll(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}

/** Judges QEMU's version: saving works by probing and needs no version, but mapped-ram came in 9.0. */
export function judgeVersion(qemu: { major: number; minor: number; micro: number }): Finding {
  const text = `QEMU ${qemu.major}.${qemu.minor}.${qemu.micro}`;
  if (qemu.major * 100 + qemu.minor >= 901) return ok(text);
  return warn(
    text,
    'only QEMU 9.1 and later load images that way by themselves; restore --method fill may still do',
  );
}

/** Judges the room for an image: an upper bound, for pages that turn out to be zero are not stored. */
export function judgeSpace({ needed, free }: { needed: number; free: number }): Finding {
  const there =
    free === Number.POSITIVE_INFINITY ? 'how much is free is unknown' : `${formatBytes(free)} are free`;
  const text = `an image takes up to ${formatBytes(needed)}, ${there}`;
  if (needed <= free) return ok(text);
  return warn(text, 'unless much of the memory is zero, make room, or name another directory by --dir');
}
