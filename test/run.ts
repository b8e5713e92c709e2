import { type SpawnOptions, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CLI, ROOT } from './support/paths.ts';
import { SUMMARY_FILE, type Summary } from './support/summary-reporter.ts';

// Runs every suite of the repository and adds them up: Rust, the TypeScript units, interop with the real QEMU (most of it under KVM
// too), the example.

interface Finished {
  status: number;
  output: string;
}

/** Runs a program with its output passed on and kept. */
function run(command: string, args: string[], options: SpawnOptions = {}): Promise<Finished> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: ROOT, ...options, stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      process.stdout.write(text);
    });
    child.once('error', reject);
    child.once('close', (status) => resolve({ status: status ?? 1, output }));
  });
}

/** A suite that ended badly with no test to blame, for instance because it did not compile, is one failure. */
function blame(summary: Summary, status: number): Summary {
  const silent = status !== 0 && summary.failed.length === 0;
  return silent ? { ...summary, failed: [`nothing by name, and exit status ${status}`] } : summary;
}

async function rust(): Promise<Summary> {
  // The binding is a shared library of Node's: its code is tested through Node.
  const { status, output } = await run('cargo', [
    'test',
    '--workspace',
    '--exclude',
    'mapram-binding',
    '--locked',
    '--',
    // A test that leaves something out for want of the host says so, and passes.
    '--show-output',
  ]);
  const summary: Summary = { passed: 0, failed: [], skipped: [] };
  for (const [, passed] of output.matchAll(/^test result: \w+\. (\d+) passed;/gm))
    summary.passed += Number(passed);
  for (const [, name] of output.matchAll(/^test (.+) \.\.\. FAILED$/gm)) summary.failed.push(name ?? '');
  for (const [, name, reason] of output.matchAll(/^test (.+) \.\.\. ignored(?:, (.*))?$/gm))
    summary.skipped.push({ name: name ?? '', reason: reason ?? 'no reason given' });
  summary.skipped.push(...leftOut(output));
  return blame(summary, status);
}

/** What Rust's tests say that they left out, with the test that said it. */
function leftOut(output: string): Summary['skipped'] {
  const skipped: Summary['skipped'] = [];
  let name = '';
  for (const line of output.split('\n')) {
    name = /^---- (.+) stdout ----$/.exec(line)?.[1] ?? name;
    const reason = /^skipped: (.+)$/i.exec(line)?.[1];
    if (reason !== undefined) skipped.push({ name, reason });
  }
  return skipped;
}

async function vitest(project: string): Promise<Summary> {
  const directory = mkdtempSync(join(tmpdir(), 'mapram-summary-'));
  const file = join(directory, 'summary.json');
  const reporters = ['--reporter=default', '--reporter=./test/support/summary-reporter.ts'];
  const { status } = await run('npx', ['vitest', 'run', '--project', project, ...reporters], {
    env: { ...process.env, [SUMMARY_FILE]: file },
  });
  const summary: Summary = existsSync(file)
    ? (JSON.parse(readFileSync(file, 'utf8')) as Summary)
    : { passed: 0, failed: [], skipped: [] };
  rmSync(directory, { recursive: true });
  return blame(summary, status);
}

async function example(): Promise<Summary> {
  const { status } = await run(process.execPath, ['packages/mapram/examples/process-memory.js']);
  return blame({ passed: status === 0 ? 1 : 0, failed: [], skipped: [] }, status);
}

const SUITES: [string, () => Promise<Summary>][] = [
  ['Rust', rust],
  ['TypeScript units', () => vitest('unit')],
  ['interop', () => vitest('interop')],
  ['interop under KVM', () => vitest('kvm')],
  ['library example', example],
];

async function main(): Promise<void> {
  if (!existsSync(CLI)) throw new Error(`${CLI} is missing`);
  const summaries: [string, Summary][] = [];
  for (const [name, suite] of SUITES) {
    console.log(`\n== ${name}`);
    summaries.push([name, await suite()]);
  }
  const total: Summary = { passed: 0, failed: [], skipped: [] };
  console.log('');
  for (const [name, { passed, failed, skipped }] of summaries) {
    console.log(`${name}: ${passed} ok, ${failed.length} not ok, ${skipped.length} left out`);
    total.passed += passed;
    total.failed.push(...failed.map((test) => `${name}, ${test}`));
    total.skipped.push(...skipped);
    // A suite that finds none of its tests has not shown anything.
    if (passed + failed.length + skipped.length === 0) total.failed.push(`${name} found no test`);
  }
  for (const { name, reason } of total.skipped) console.log(`SKIPPED ${name}: ${reason}`);
  // At the end, for that is what is left where a long output is cut.
  for (const name of total.failed) console.log(`FAILED ${name}`);
  const skipped = total.skipped.length > 0 ? `, ${total.skipped.length} skipped` : '';
  console.log(`${total.passed} passed, ${total.failed.length} failed${skipped}`);
  process.exitCode = total.failed.length === 0 ? 0 : 1;
}

await main();
