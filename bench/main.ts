import { type BenchArguments, parseArguments } from './arguments.ts';
import { measureBars } from './bars.ts';
import { runToEnd } from './interruption.ts';
import { measure } from './measure.ts';
import { headline, type Results } from './report.ts';
import type { SessionPlan } from './session.ts';
import { plainTable, seriesTable } from './table.ts';
import { defaultBytes } from './workload.ts';

/** The sessions that the options ask for. */
function plans(options: BenchArguments): SessionPlan[] {
  const { channels, engine: engines, copy: copies, against, runs: rounds } = options;
  return options.operation.flatMap((operation) =>
    options.workload.flatMap((workload) => {
      const guestBytes = options.size ?? defaultBytes(workload);
      const plan = { operation, workload, guestBytes, channels, engines, copies, against, rounds };
      if (workload === 'private') return [plan];
      const states = operation === 'restore' ? options.state : [undefined];
      return options.memory.flatMap((memory) => states.map((state) => ({ ...plan, memory, state })));
    }),
  );
}

/** Runs every session; the exit status is 1 if a run was void. */
async function main(options: BenchArguments): Promise<number> {
  if (options.bars) return measureBars(options);
  const all: Results[] = [];
  for (const plan of plans(options)) {
    const results = await measure(plan, options.dir, options.results);
    all.push(results);
    if (options.json) continue;
    const { session, series } = results;
    process.stdout.write(
      `\n${plainTable(seriesTable(series, session.runs, session.guestBytes))}\n\n${headline(results)}\n`,
    );
  }
  if (options.json) process.stdout.write(`${JSON.stringify(all, undefined, 1)}\n`);
  return all.some(({ session }) => session.runs.some(({ voided }) => voided !== undefined)) ? 1 : 0;
}

await runToEnd(() => main(parseArguments(process.argv.slice(2))));
