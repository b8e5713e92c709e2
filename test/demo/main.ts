import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Cleanup } from '../support/cleanup.ts';
import { type CliReport, succeed } from '../support/cli.ts';
import { counts, expectUnbrokenCount, waitForProgram } from '../support/console.ts';
import { diskDirectory } from '../support/paths.ts';
import { Qemu, type QemuOptions } from '../support/qemu.ts';
import { stockLoad } from '../support/stock.ts';
import { waitFor } from '../support/wait.ts';

// A real Linux guest is saved by the command line while it counts on its console, goes on, and is brought back from the
// image twice: in a second QEMU that knows nothing of mapram, and in a third by mapram. All count on from the same number.

const GUEST: QemuOptions = { machine: 'q35', mebibytes: 1024, program: 512 };

function say(text: string): void {
  console.log(text);
}

function mib(bytes: number | undefined): string {
  return `${((bytes ?? 0) / 2 ** 20).toFixed(0)} MiB`;
}

/** Prints the last lines of a console, marked with whose it is. */
function showConsole(who: string, text: string, lines: number): void {
  for (const line of text.trimEnd().split(/\r?\n/).slice(-lines)) say(`    ${who} | ${line}`);
}

async function boot(cleanup: Cleanup): Promise<Qemu> {
  say(
    '1. Booting a Linux guest: 1 GiB of private RAM, no KVM. Its program fills 512 MiB and counts on the console.',
  );
  const guest = await Qemu.start(GUEST, cleanup);
  await waitForProgram(guest);
  showConsole('guest', guest.serial(), 5);
  return guest;
}

async function saveRunning(guest: Qemu, image: string): Promise<CliReport> {
  say(`\n2. mapram save --qmp SOCKET --then resume ${image}`);
  const saved = await succeed(['save', '--qmp', guest.socket, '--then', 'resume', image]);
  const file = statSync(image);
  const rate = ((saved.bytesPerSecond ?? 0) / 1e6).toFixed(0);
  say(
    `    ${mib(saved.dataBytes)} of data in ${saved.durationMs?.toFixed(0)} ms (to durable), ${rate} MB/s, engine ${saved.engine}`,
  );
  say(`    the guest was paused for ${saved.pauseMs?.toFixed(0)} ms`);
  say(`    image: ${mib(file.size)} logical, ${mib(file.blocks * 512)} on disk`);
  return saved;
}

async function restoreInStockQemu(image: string, cleanup: Cleanup): Promise<Qemu> {
  say('\n3. A second, stock QEMU (-incoming defer) loads the image by itself.');
  const copy = await Qemu.start({ ...GUEST, incoming: true }, cleanup);
  await stockLoad(copy, image, { multifd: true, directIo: true });
  await waitFor('the copy to run', 10_000, async () =>
    (await copy.qmp.status()) === 'running' ? true : undefined,
  );
  return copy;
}

async function restoreByMapram(image: string, cleanup: Cleanup): Promise<Qemu> {
  say(`\n4. mapram restore --qmp SOCKET ${image} fills a third one.`);
  const copy = await Qemu.start({ ...GUEST, incoming: true }, cleanup);
  const restored = await succeed(['restore', '--qmp', copy.socket, image]);
  const rate = ((restored.bytesPerSecond ?? 0) / 1e6).toFixed(0);
  say(`    ${mib(restored.dataBytes)} of data in ${restored.durationMs?.toFixed(0)} ms, ${rate} MB/s`);
  return copy;
}

/** The console of a copy from its first whole count on; the pause may have cut a line in two. */
async function consoleOf(copy: Qemu): Promise<string> {
  const text = await waitFor('the copy to check its memory', 30_000, () =>
    (copy.serial().match(/^sum (ok|BAD)/gm)?.length ?? 0) >= 2 ? copy.serial() : undefined,
  );
  return text.slice(text.search(/^count /m));
}

/** All consoles count on from one number: the one after the last that was written before the pause. */
async function compareConsoles(guest: Qemu, copies: Record<string, Qemu>): Promise<void> {
  for (const [name, copy] of Object.entries(copies)) {
    const text = await consoleOf(copy);
    const first = counts(text)[0] ?? 0;
    const original = guest.serial();
    expectUnbrokenCount(original);
    const before = original.slice(0, original.search(new RegExp(`^count ${first}\r?$`, 'm')));
    expectUnbrokenCount(before + text);
    say(`\n    guest and ${name}, which go on with count ${first}:`);
    showConsole('both  ', before, 2);
    showSideBySide(original.slice(before.length), text, name);
  }
  say('\nAll consoles count on from the same number, and the copies found their memory intact.');
}

function showSideBySide(left: string, right: string, name: string): void {
  const [of, to] = [left, right].map((text) => text.split(/\r?\n/).slice(0, 7)) as [string[], string[]];
  for (const [index, line] of to.entries())
    say(`    guest  | ${(of[index] ?? '').padEnd(20)} ${name} | ${line}`);
}

async function main(): Promise<void> {
  const cleanup = new Cleanup();
  process.once('SIGINT', () => void cleanup.run().finally(() => process.exit(130)));
  try {
    const directory = diskDirectory(cleanup);
    const image = join(directory, 'guest.mapram');
    const guest = await boot(cleanup);
    await saveRunning(guest, image);
    await sleep(1000);
    const copy = await restoreInStockQemu(image, cleanup);
    const filled = await restoreByMapram(image, cleanup);
    await compareConsoles(guest, { loaded: copy, filled });
    rmSync(image);
  } finally {
    await cleanup.run();
  }
}

await main();
