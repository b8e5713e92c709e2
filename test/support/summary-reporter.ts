import { writeFileSync } from 'node:fs';
import type { Reporter, TestModule } from 'vitest/node';

/** What the runner of all suites needs of one vitest run. */
export interface Summary {
  passed: number;
  /** What failed, and what it said. */
  failed: string[];
  skipped: { name: string; reason: string }[];
}

/** The file that {@link SummaryReporter} writes, named by this variable. */
export const SUMMARY_FILE = 'MAPRAM_TEST_SUMMARY';

/** A vitest reporter that counts, and keeps the reasons of what was skipped. */
export default class SummaryReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], unhandled: readonly unknown[]): void {
    // An error outside of every test is a failure that no test counts.
    const summary: Summary = {
      passed: 0,
      failed: unhandled.map((error) => `outside of every test: ${said([error])}`),
      skipped: [],
    };
    for (const module of modules) count(module, summary);
    const path = process.env[SUMMARY_FILE];
    if (path !== undefined) writeFileSync(path, JSON.stringify(summary));
  }
}

function count(module: TestModule, summary: Summary): void {
  const name = (it: { fullName: string }): string => `${module.relativeModuleId}: ${it.fullName}`;
  summary.failed.push(...module.errors().map((error) => `${module.relativeModuleId}: ${said([error])}`));
  for (const suite of module.children.allSuites())
    summary.failed.push(...suite.errors().map((error) => `${name(suite)}: ${said([error])}`));
  for (const test of module.children.allTests()) {
    const result = test.result();
    if (result.state === 'passed') summary.passed++;
    else if (result.state === 'skipped') {
      const reason = result.note ?? 'no reason given';
      summary.skipped.push({ name: name(test), reason });
    } else summary.failed.push(`${name(test)}: ${said(result.errors ?? [])}`);
  }
}

/** The first line of the first error. */
function said([error]: readonly unknown[]): string {
  const { message } = (error ?? {}) as { message?: string };
  return message?.split('\n')[0] ?? 'no message';
}
