import { execFile } from 'node:child_process';
import { MapramError } from '../errors.ts';

/** What blkid(8) exits with where it finds nothing that it knows; and where it cannot look, which it then says. */
const BLKID_FOUND_NOTHING = 2;
const BLKID_TIMEOUT_MS = 60_000;
/** blkid is among root's programs, which are not on every user's PATH. */
const PATH = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`;

/**
 * Refuses a block device that holds something, such as a file system or a partition table. That of which only its users know is not
 * found: a guest's raw data, say. Images are found by whoever opens the device; to be called when it is open, so that nothing gets
 * there meanwhile and a device that may not be opened is called just that.
 *
 * @throws {MapramError} E_TARGET_EXISTS
 */
export async function requireBlankDevice(image: string, signal: AbortSignal): Promise<void> {
  const content = await probe(image, signal);
  signal.throwIfAborted();
  if (content === undefined) return;
  const message = `${image} ${content}, and overwriting it was not asked for`;
  throw new MapramError('E_TARGET_EXISTS', message, { path: image });
}

/** What the device holds, as far as blkid can tell by looking at the device itself. */
function probe(device: string, signal: AbortSignal): Promise<string | undefined> {
  const words = ['--probe', '--output', 'export', '--', device];
  return new Promise((resolve) => {
    const how = { env: { ...process.env, PATH }, signal, timeout: BLKID_TIMEOUT_MS };
    execFile('blkid', words, how, (error, stdout, stderr) => {
      if (error?.killed) return resolve('may hold anything: blkid has not come to an end');
      if (error?.code === BLKID_FOUND_NOTHING && stderr === '') return resolve(undefined);
      if (typeof error?.code === 'string')
        return resolve(`may hold anything: blkid, of util-linux, cannot be run (${error.code})`);
      const type = /^(?:PT)?TYPE=(.*)$/m.exec(stdout)?.[1];
      if (type !== undefined) return resolve(`holds something: ${type}`);
      const complaint = stderr.trim();
      resolve(
        complaint === '' ? 'holds something that blkid cannot name' : `may hold anything: ${complaint}`,
      );
    });
  });
}
