import { describe, expect, it } from 'vitest';
import {
  findFileSystem,
  judgeKernel,
  judgeLockedMemory,
  judgePtrace,
  judgeSpace,
  judgeVersion,
} from './judge.ts';

describe('the kernel', () => {
  it.each([
    ['6.18.0', 'ok'],
    ['6.7.0-rc1', 'ok'],
    ['6.1.0-30-amd64', 'warn'],
    ['5.15.0-100-generic', 'warn'],
    ['5.2.9', 'fail'],
    ['4.19.0', 'fail'],
  ])('%s is %s', (release, status) => expect(judgeKernel(release).status).toBe(status));
});

describe('locked memory', () => {
  const limits = (soft: string): string =>
    `Limit                     Soft Limit           Hard Limit           Units\n` +
    `Max locked memory         ${soft.padEnd(20)} unlimited            bytes\n`;

  it.each([
    ['8388608', false, 'warn'],
    ['67108864', false, 'ok'],
    ['unlimited', false, 'ok'],
    ['8388608', true, 'ok'],
  ])('of %s, privileged %s, is %s', (soft, isPrivileged, status) => {
    expect(judgeLockedMemory(limits(soft), isPrivileged).status).toBe(status);
  });
});

describe("other processes' memory", () => {
  it.each([
    ['0\n', false, 'ok'],
    ['1\n', false, 'warn'],
    ['1\n', true, 'ok'],
    ['2\n', true, 'ok'],
    ['3\n', true, 'fail'],
  ])('with ptrace_scope %j, privileged %s, is %s', (scope, isPrivileged, status) => {
    expect(judgePtrace(scope, isPrivileged).status).toBe(status);
  });
});

describe('the file system of a directory', () => {
  const mountinfo = [
    '22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw',
    '30 22 0:26 / /var/lib\\040vm rw - xfs /dev/vdb rw',
    '31 22 0:27 / /var rw - btrfs /dev/vdc rw',
    '32 22 0:28 / /var rw - tmpfs none rw',
    '',
  ].join('\n');

  it.each([
    ['/home', 'ext4'],
    ['/', 'ext4'],
    ['/var/lib vm/images', 'xfs'],
    ['/var/libs', 'tmpfs'],
    ['/variable', 'ext4'],
  ])('%s is on %s', (path, type) => expect(findFileSystem(mountinfo, path)).toBe(type));
});

describe('QEMU', () => {
  it.each([
    [{ major: 10, minor: 0, micro: 2 }, 'ok'],
    [{ major: 9, minor: 1, micro: 0 }, 'ok'],
    [{ major: 9, minor: 0, micro: 4 }, 'warn'],
    [{ major: 8, minor: 2, micro: 0 }, 'warn'],
  ])('%j is %s', (version, status) => expect(judgeVersion(version).status).toBe(status));
});

it('compares the room with the memory that may hold data', () => {
  expect(judgeSpace({ needed: 1.5 * 2 ** 20, free: 2 ** 31 })).toMatchObject({
    status: 'ok',
    message: 'an image takes up to 1.5 MiB, 2 GiB are free',
  });
  expect(judgeSpace({ needed: 2 ** 30, free: 2 ** 30 }).status).toBe('ok');
  expect(judgeSpace({ needed: 2 ** 30, free: Number.POSITIVE_INFINITY })).toMatchObject({
    status: 'ok',
    message: 'an image takes up to 1 GiB, how much is free is unknown',
  });
  // A save reads the memory then, and may find most of it zero.
  expect(judgeSpace({ needed: 2 ** 31, free: 2 ** 29 })).toMatchObject({
    status: 'warn',
    message: 'an image takes up to 2 GiB, 512 MiB are free',
  });
});
