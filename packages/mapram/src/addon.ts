import { createRequire } from 'node:module';
import { asMapramError, EXIT_STATUS, MapramError } from './errors.ts';

/** What the addon exports. */
export type Addon = typeof import('@mapram/native');

let loaded: Addon | undefined;

/**
 * The Rust addon. It is loaded at its first use, so that whatever needs none works without it. Its failures are MapramErrors.
 *
 * @throws {MapramError} E_HOST_UNSUPPORTED with the likely reason why it does not load.
 */
export function addon(): Addon {
  loaded ??= load();
  return loaded;
}

/** Stands for the addon's export of that name, but does not load the addon before it is called or looked into. */
export function late<K extends keyof Addon>(name: K): Addon[K] {
  const translated = (member: unknown): unknown =>
    typeof member === 'function' ? translating(member as Call) : member;
  return new Proxy(() => {}, {
    apply: (_, self, args) => Reflect.apply(translating(addon()[name] as Call), self, args),
    get: (_, key) => translated(Reflect.get(Object(addon()[name]), key)),
  }) as unknown as Addon[K];
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

type Call = (this: unknown, ...args: unknown[]) => unknown;

/** For each class of the addon, by its prototype, one behind which its methods fail with MapramErrors only. */
const translatedPrototypes = new Map<unknown, object>();

function translatedPrototype(prototype: object): object {
  const translated: object = Object.create(prototype);
  for (const [name, { value }] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
    if (typeof value === 'function' && name !== 'constructor') {
      const method: Call = function (this: unknown, ...args) {
        return Reflect.apply(Reflect.get(prototype, name), this, args);
      };
      Object.defineProperty(translated, name, { value: translating(method) });
    }
  }
  translatedPrototypes.set(prototype, translated);
  return translated;
}

/** An answer of the addon's. An object of it is our own, while its class is everybody's who has loaded the addon. */
function adopted(answer: unknown): unknown {
  const prototype = Object.getPrototypeOf(Object(answer));
  if (!Object.values(addon()).includes(prototype?.constructor)) return answer;
  return Object.setPrototypeOf(answer, translatedPrototypes.get(prototype) ?? translatedPrototype(prototype));
}

/** The function, failing with MapramErrors only: thrown, or by the promise that it returns. */
function translating(call: Call): Call {
  return function (this: unknown, ...args) {
    try {
      const answer = call.apply(this, args);
      // No instanceof: the addon's promises are of the main realm, which need not be ours.
      return typeof Object(answer).then === 'function'
        ? (answer as Promise<unknown>).then(adopted, refuse)
        : adopted(answer);
    } catch (error) {
      return refuse(error);
    }
  };
}

/** What the addon fails with on purpose has a code of ours; anything else, such as a panic, is a bug. */
function refuse(thrown: unknown): never {
  const { code, message, path, offset, cause } = thrown as MapramError;
  if (!Object.hasOwn(EXIT_STATUS, code)) throw asMapramError(thrown);
  throw new MapramError(code, message, { path, offset, cause });
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
  [
    /version `?GLIBC_|Error loading shared library|ld-linux|musl/,
    "it was built for another C library, or a newer one, than this host's: build it here (npm run build)",
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
