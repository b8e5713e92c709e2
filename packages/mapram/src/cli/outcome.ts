/** Version of every JSON object that the command line prints; it changes only when a field's meaning does. */
export const SCHEMA_VERSION = 1;

/** What a command that did not fail has to say. */
export interface CommandResult {
  /** For people. */
  text: string;
  /** For programs, with `--json`; commands that only print a text have none. */
  report?: object;
  /** The exit status. */
  status: number;
  /** What the command has changed, as a part of a sentence; it stays true where the report cannot be written. */
  done?: string;
}

/** The result of a command that did what it was to do. */
export function succeeded(report: object, text: string): CommandResult {
  return { text, report: { schemaVersion: SCHEMA_VERSION, ok: true, ...report }, status: 0 };
}
