import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { drawCharts, type Results, writeReport } from './report.ts';
import { sessionName } from './session.ts';

/** Writes a session's JSON, Markdown report and charts below `directory`, one subdirectory for each kind of disk, and tells where. */
export function writeResults(directory: string, diskLabel: string, results: Results): string {
  const place = join(directory, diskLabel);
  const name = join(place, sessionName(results.session));
  mkdirSync(place, { recursive: true });
  writeFileSync(`${name}.json`, `${JSON.stringify(results, undefined, 1)}\n`);
  writeFileSync(`${name}.md`, writeReport(results));
  for (const [chart, svg] of Object.entries(drawCharts(results))) writeFileSync(join(place, chart), svg);
  return `${name}.md`;
}
