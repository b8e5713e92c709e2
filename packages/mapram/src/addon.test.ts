import { expect, it } from 'vitest';
import { likelyReason } from './addon.ts';

const ABSENT = [
  "Cannot find module './mapram.linux-x64-gnu.node'",
  "Cannot find module '@mapram/native-linux-x64-gnu'",
];

it.each([
  ['darwin', 'x64', ABSENT, 'for Linux only, and this is darwin'],
  ['linux', 'arm64', ABSENT, 'x86-64 only, and this is arm64'],
  ['linux', 'x64', ABSENT, 'not installed for linux-x64'],
  ['linux', 'x64', ["Cannot find module './mapram.linux-x64-musl.node'"], 'none for musl'],
  [
    'linux',
    'x64',
    ["/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.39' not found (required by /m.node)", ...ABSENT],
    'or a newer one',
  ],
  [
    'linux',
    'x64',
    ['Error loading shared library ld-linux-x86-64.so.2: No such file or directory'],
    'another C library',
  ],
  ['linux', 'x64', ['/m.node: invalid ELF header'], 'damaged'],
  ['linux', 'x64', ['/m.node: failed to map segment from shared object'], 'noexec'],
  ['linux', 'x64', ['/m.node: cannot open shared object file: Too many open files'], 'ulimit -n'],
  ['linux', 'x64', ['/m.node: undefined symbol: x'], 'the dynamic linker refuses it'],
])('an addon that does not load on %s %s: %j', (platform, arch, tried, reason) => {
  expect(likelyReason(tried, platform, arch)).toContain(reason);
});
