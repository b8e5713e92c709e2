import { describe, expect, it } from 'vitest';
import { describeProgress, ProgressLine } from './progress.ts';

const GiB = 1024 ** 3;

/** A terminal that remembers, and a clock moved by hand. */
function stage(isTerminal: boolean, width = 80) {
  const written: string[] = [];
  const clock = { ms: 0 };
  const err = (text: string) => void written.push(text);
  const terminal = { isTerminal, columns: () => width, err, now: () => clock.ms };
  return { written, clock, line: new ProgressLine('saving', terminal) };
}

describe('one progress line', () => {
  it('says percent, bytes, rate and time left', () => {
    const sample = { bytesDone: 1 * GiB, bytesTotal: 4 * GiB };
    expect(describeProgress('saving', sample, 2e9)).toBe(
      'saving  25 %  1 GiB of 4 GiB  2,000 MB/s  0:02 left',
    );
    expect(describeProgress('saving', sample, 8e5)).toContain('1:07:07 left');
  });

  it('says no rate before there is one, and survives a job without bytes', () => {
    expect(describeProgress('saving', { bytesDone: 0, bytesTotal: GiB }, 0)).toBe(
      'saving   0 %  0 bytes of 1 GiB',
    );
    expect(describeProgress('saving', { bytesDone: 0, bytesTotal: 0 }, 0)).toContain('100 %');
  });
});

describe('on a terminal', () => {
  it('draws over the same line at most ten times a second and wipes it', () => {
    const { written, clock, line } = stage(true);
    for (clock.ms = 0; clock.ms < 1000; clock.ms += 10) {
      line.update({ bytesDone: clock.ms * 1e6, bytesTotal: 1e9 });
    }
    expect(written).toHaveLength(10);
    expect(written.every((text) => text.startsWith('\r') && !text.includes('\n'))).toBe(true);
    line.finish();
    expect(written.at(-1)).toMatch(/^\r +\r$/);
  });

  it('never writes into the last column', () => {
    const { written, line } = stage(true, 20);
    line.update({ bytesDone: 1, bytesTotal: 1e9 });
    expect(written[0]).toHaveLength(1 + 19);
  });

  it('wipes nothing when nothing was drawn', () => {
    const { written, line } = stage(true);
    line.finish();
    expect(written).toEqual([]);
  });
});

describe('elsewhere', () => {
  it('writes a whole line a second at most', () => {
    const { written, clock, line } = stage(false);
    for (clock.ms = 0; clock.ms < 3000; clock.ms += 50) {
      line.update({ bytesDone: clock.ms * 1e6, bytesTotal: 4e9 });
    }
    line.finish();
    expect(written).toHaveLength(3);
    expect(written[2]).toMatch(/^saving {2}50 % .* 1,000 MB\/s {2}0:02 left\n$/);
  });

  it('forgets speeds older than the window', () => {
    const { written, clock, line } = stage(false);
    line.update({ bytesDone: 0, bytesTotal: 1e12 });
    for (clock.ms = 1000; clock.ms <= 20_000; clock.ms += 1000) {
      line.update({ bytesDone: 1e11 + clock.ms * 1e4, bytesTotal: 1e12 });
    }
    expect(written.at(-1)).toContain(' 10 MB/s');
  });
});
