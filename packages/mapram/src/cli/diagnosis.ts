import { type Check, type DoctorOptions, type DoctorReport, doctor } from '../doctor.ts';
import { MapramError } from '../errors.ts';
import { exitStatus, failureReport } from './failure.ts';
import { type CommandResult, succeeded } from './outcome.ts';

/** Runs `mapram doctor`. */
export async function runDoctor(options: DoctorOptions): Promise<CommandResult> {
  return diagnosis(await doctor(options));
}

/** What doctor found; the exit status is 0 if a save would work, else that of the error that it would meet. */
export function diagnosis(report: DoctorReport): CommandResult {
  const error = verdict(report.checks);
  const text = `${report.checks.map(describeCheck).join('')}\n${summary(report.checks)}\n`;
  if (error === undefined) return succeeded(report, text);
  return { text, report: { ...failureReport(error), ...report }, status: exitStatus(error) };
}

/** The first failed check as the error that a save would meet; the host's come first, for they concern every guest. */
function verdict(checks: Check[]): MapramError | undefined {
  const failed = checks.filter((check) => check.status === 'fail');
  const first = failed.find((check) => check.area === 'host') ?? failed[0];
  if (first === undefined) return undefined;
  const code = first.code ?? (first.area === 'host' ? 'E_HOST_UNSUPPORTED' : 'E_GUEST_UNSUPPORTED');
  return new MapramError(code, first.message, { field: first.name });
}

function describeCheck({ status, name, message, advice }: Check): string {
  const line = `${status.padEnd(4)}  ${name.padEnd(18)}  ${message}\n`;
  return advice === undefined ? line : `${line}${' '.repeat(26)}-> ${advice}\n`;
}

function summary(checks: Check[]): string {
  const failures = checks.filter((check) => check.status === 'fail').length;
  const warnings = checks.filter((check) => check.status === 'warn').length;
  if (failures > 0) return `A save would fail: ${failures} of ${checks.length} checks failed.`;
  const note = warnings === 0 ? '' : ` ${warnings} of ${checks.length} checks have a warning.`;
  const isTight = checks.some(({ name, status }) => name === 'space' && status === 'warn');
  return `A save would work${isTight ? ', if its image has room' : ''}.${note}`;
}
