import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { BenchArguments } from './arguments.ts';
import { type Bar, isMet } from './bar.ts';
import { barsDirectory, GROUPS, type Group, groupsOf } from './bar-groups.ts';
import { describeHost, type Host } from './host.ts';
import { interruption } from './interruption.ts';
import { say } from './measure.ts';
import { hostFacts } from './report.ts';
import { markdownTable, plainTable } from './table.ts';
import { needTools } from './tools.ts';

/** What is known of the bars: kept beside their report, so that what was measured need not be measured again. */
export interface Progress {
  host: Host;
  /** Channel counts, sizes and whatever else the figures depend on. */
  options: Pick<BenchArguments, 'channels' | 'size' | 'dir' | 'runs'>;
  /** By the names of the groups. */
  groups: Record<string, Measured>;
}

/** The bars of a group that was measured, when, and of which commit. */
export interface Measured {
  commit: string;
  began: string;
  bars: Bar[];
}

/**
 * Measures what the bars need, prints them with their figures, and writes them beside the reports. Where only some groups are asked
 * for, the others are as an earlier run left them. Returns the exit status.
 */
export async function measureBars(options: BenchArguments): Promise<number> {
  // What the host is like, versions of tools included, decides which earlier bars count.
  needTools(['fio', 'mkfs.xfs'], say);
  const { channels, size, dir, runs } = options;
  const host = describeHost();
  const wanted: Progress = {
    host,
    options: { channels, dir, runs, ...(size === undefined ? {} : { size }) },
    groups: {},
  };
  const asked = groupsOf(options.bars);
  const groups = earlierGroups(wanted, readEarlier(barsDirectory(options)), asked);
  for (const group of asked) {
    const began = new Date().toISOString();
    groups[group.name] = { commit: host.commit, began, bars: await barsOf(group.measureGroup, options) };
    // The whole takes two hours; what is known shall not be lost with the rest.
    mkdirSync(barsDirectory(options), { recursive: true });
    const path = (file: string) => join(barsDirectory(options), file);
    writeFileSync(path('bars.md'), barsReport({ ...wanted, groups }));
    writeFileSync(path('bars.json'), `${JSON.stringify({ ...wanted, groups }, undefined, 1)}\n`);
  }
  process.stdout.write(`${plainTable(tableOf(groups))}\n`);
  return GROUPS.every(({ name }) => groups[name]?.bars.every(isMet)) ? 0 : 1;
}

function readEarlier(directory: string): Progress | undefined {
  const path = join(directory, 'bars.json');
  return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as Progress) : undefined;
}

/**
 * The groups of an earlier run that are kept: those that were not asked for.
 *
 * @throws {Error} if groups were to be kept that are of another machine or of other options.
 */
export function earlierGroups(
  wanted: Progress,
  found: Progress | undefined,
  asked: Group[],
): Progress['groups'] {
  if (found === undefined || asked.length === GROUPS.length) return {};
  const conditions = ({ host, options }: Progress) => JSON.stringify([{ ...host, commit: '' }, options]);
  if (conditions(found) !== conditions(wanted))
    throw new Error(
      'the earlier bars are of another machine or other options: measure all of them anew, or some with --results and a directory that has none',
    );
  const kept = GROUPS.filter((group) => !asked.includes(group) && found.groups[group.name] !== undefined);
  return Object.fromEntries(kept.map(({ name }) => [name, found.groups[name] as Measured]));
}

function barsReport({ groups, host }: Progress): string {
  const missing = GROUPS.filter(({ name }) => !(name in groups)).map(({ name }) => name);
  const rest = missing.length === 0 ? '' : `- still to be measured: ${missing.join(', ')}\n`;
  const sessions = "- each session's report, with its commit and time, is in a folder of this one\n";
  return `# Bars\n\n${markdownTable(tableOf(groups))}\n\n${hostFacts({ ...host, commit: 'as the table says' })}\n${sessions}${rest}`;
}

/** The group's bars; one that is missed and says why if they cannot be measured, so that the others still are. */
async function barsOf(measureGroup: Group['measureGroup'], options: BenchArguments): Promise<Bar[]> {
  try {
    return await measureGroup(options);
  } catch (error) {
    interruption.throwIfAborted();
    return [{ name: `not measured: ${(error as Error).message}`, figure: undefined }];
  }
}

function tableOf(groups: Progress['groups']): string[][] {
  const rows = GROUPS.flatMap(({ name }) => {
    const { bars = [], commit = '' } = groups[name] ?? {};
    return bars.map((bar) => [
      bar.name,
      neededText(bar),
      bar.figure?.toFixed(2) ?? 'no valid run',
      isMet(bar) ? 'pass' : 'FAIL',
      commit,
    ]);
  });
  return [['bar', 'needed', 'measured', 'result', 'commit'], ...rows];
}

function neededText({ least, most }: Bar): string {
  if (least !== undefined) return `at least ${least}`;
  return most === undefined ? '' : `at most ${most}`;
}
