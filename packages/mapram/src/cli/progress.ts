import type { Progress } from '../job.ts';
import { formatBytes, formatRate } from '../units.ts';
import type { Terminal } from './terminal.ts';

/** How far a job is, in bytes. */
export type ProgressSample = Pick<Progress, 'bytesDone' | 'bytesTotal'>;

const TERMINAL_INTERVAL_MS = 100;
const PLAIN_INTERVAL_MS = 1000;
/** Long enough to smooth a disk's hiccups, short enough to show that it has become slow. */
const RATE_WINDOW_MS = 5000;

/** Draws one job's progress with rate and time left: a line drawn over on a terminal, else a line a second. */
export class ProgressLine {
  readonly #verb: string;
  readonly #terminal: Omit<Terminal, 'out'>;
  #samples: { at: number; bytes: number }[] = [];
  #drawnAt = Number.NEGATIVE_INFINITY;
  #drawnWidth = 0;

  constructor(verb: string, terminal: Omit<Terminal, 'out'>) {
    this.#verb = verb;
    this.#terminal = terminal;
  }

  /** Takes note of a sample and draws it unless the last drawing is too recent. */
  update(sample: ProgressSample): void {
    const now = this.#terminal.now();
    this.#samples = this.#samples.filter(({ at }) => at >= now - RATE_WINDOW_MS);
    this.#samples.push({ at: now, bytes: sample.bytesDone });
    const interval = this.#terminal.isTerminal ? TERMINAL_INTERVAL_MS : PLAIN_INTERVAL_MS;
    if (now - this.#drawnAt < interval) return;
    this.#drawnAt = now;
    this.#draw(describeProgress(this.#verb, sample, this.#rate()));
  }

  /** Wipes the line, so that what is printed next stands alone. */
  finish(): void {
    if (this.#drawnWidth > 0) this.#terminal.err(`\r${' '.repeat(this.#drawnWidth)}\r`);
    this.#drawnWidth = 0;
  }

  #draw(text: string): void {
    if (!this.#terminal.isTerminal) {
      this.#terminal.err(`${text}\n`);
      return;
    }
    // The last column stays free: writing there makes some terminals begin a new line.
    const line = text.slice(0, Math.max(this.#terminal.columns() - 1, 0));
    this.#terminal.err(`\r${line.padEnd(this.#drawnWidth)}`);
    this.#drawnWidth = line.length;
  }

  /** Bytes a second over the window; 0 until there are two moments to compare. */
  #rate(): number {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (first === undefined || last === undefined || last.at === first.at) return 0;
    return Math.max(((last.bytes - first.bytes) * 1000) / (last.at - first.at), 0);
  }
}

/** One progress line: verb, percent, bytes, rate and time left. */
export function describeProgress(verb: string, sample: ProgressSample, bytesPerSecond: number): string {
  const { bytesDone, bytesTotal } = sample;
  const percent = bytesTotal === 0 ? 100 : Math.floor((bytesDone / bytesTotal) * 100);
  const timeLeft = formatTimeLeft((bytesTotal - bytesDone) / bytesPerSecond);
  const pace = bytesPerSecond > 0 ? [formatRate(bytesPerSecond), `${timeLeft} left`] : [];
  const amount = `${formatBytes(bytesDone)} of ${formatBytes(bytesTotal)}`;
  return [`${verb} ${String(percent).padStart(3)} %`, amount, ...pace].join('  ');
}

/** Minutes and seconds, with hours when there are any: `0:07`, `1:02:03`. */
function formatTimeLeft(secondsLeft: number): string {
  const seconds = Math.ceil(Math.max(secondsLeft, 0));
  const hours = Math.floor(seconds / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  const clock = `${minutes}:${String(seconds % 60).padStart(2, '0')}`;
  return hours === 0 ? clock : `${hours}:${clock.padStart(5, '0')}`;
}
