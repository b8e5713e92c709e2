import { createRequire } from 'node:module';
import { MapramError } from './errors.ts';

/** What the addon exports. */
export type Addon = typeof import('@mapram/native');

let loaded: Addon | undefined;

/**
 * The Rust addon. It is loaded at its first use, so that whatever needs none works without it.
 *
 * @throws {MapramError} E_HOST_UNSUPPORTED with the likely reason why it does not load.
 */
export function addon(): Addon {
  loaded ??= load();
  return loaded;
}

function load(): Addon {
  try {
    return createRequire(import.meta.url)('@mapram/native') as Addon;
  } catch (error) {
    const tried = messagesOf(error);
    const reason = likelyReason(tried, process.platform, process.arch);
    throw new MapramError('E_HOST_UNSUPPORTED', `mapram's native addon does not load: ${reason}`, {
      cause: linkerRefusal(tried) ?? tried.at(-1),
    });
  }
}

/** What the loader met at each place where it looked, the first one last; its own sentence blames npm, so that goes. */
function messagesOf(error: unknown): string[] {
  const messages: string[] = [];
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    if (!at.message.startsWith('Cannot find native binding'))
      messages.push(at.message.split('\n', 1)[0] ?? '');
  }
  return messages;
}

/** What the dynamic linker said of a file that was there. */
function linkerRefusal(tried: readonly string[]): string | undefined {
  return tried.find((message) => !/^Cannot find (module|package)/.test(message));
}

/** Words of the dynamic linker, and what they mean. */
const LINKER_WORDS: readonly (readonly [RegExp, string])[] = [
  [/version `?GLIBC_/, "it was built for a newer C library than this host's: build it here (npm run build)"],
  [
    /Error loading shared library|ld-linux|musl/,
    "it was built for another C library than this host's: build it here (npm run build)",
  ],
  [
    /file too short|invalid ELF header|wrong ELF class|Exec format/,
    'its file is damaged or for another machine: install it anew',
  ],
  [
    /failed to map segment|Operation not permitted/,
    'it lies on a file system that is mounted noexec, or a security module forbids it',
  ],
  [/[Tt]oo many open files/, 'this process has too few file descriptors: raise ulimit -n'],
];

/** The likely reason, and what to do about it, in one sentence. */
export function likelyReason(tried: readonly string[], platform: string, arch: string): string {
  if (platform !== 'linux') return `it exists for Linux only, and this is ${platform}`;
  if (arch !== 'x64') return `it exists for x86-64 only, and this is ${arch}`;
  const refusal = linkerRefusal(tried);
  if (refusal !== undefined) {
    return LINKER_WORDS.find(([words]) => words.test(refusal))?.[1] ?? 'the dynamic linker refuses it';
  }
  if (tried.some((message) => message.includes('-musl'))) {
    return "there is none for musl, this host's C library: build it here (npm run build)";
  }
  return `it is not installed for linux-${arch}: install mapram with its optional dependencies, or build it (npm run build)`;
}
