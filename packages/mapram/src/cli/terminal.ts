/** The streams that the command line writes to; tests pass their own. */
export interface Terminal {
  /** Writes a result; rejects if it cannot be written, unless nobody wants to read it. */
  out(text: string): Promise<void>;
  /** Writes progress, notices and errors. */
  err(text: string): void;
  /** Whether stderr is a terminal. */
  isTerminal: boolean;
  /** Width of stderr in characters. */
  columns(): number;
  /** Milliseconds of a clock that never goes back. */
  now(): number;
}

/** This process's own streams. */
export function processTerminal(): Terminal {
  return {
    out: writeResult,
    err: (text) => void process.stderr.write(text),
    isTerminal: process.stderr.isTTY === true,
    // A terminal that does not know its width says 0.
    columns: () => process.stderr.columns || 80,
    now: () => performance.now(),
  };
}

/** A reader that has gone away (`mapram inspect x | head -1`) is no failure; any other error is. */
function writeResult(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(text, (error) => {
      if (!error || ('code' in error && error.code === 'EPIPE')) resolve();
      else reject(error);
    });
  });
}
