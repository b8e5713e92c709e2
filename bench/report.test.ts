import { describe, expect, it } from 'vitest';
import { drawCharts, type Results } from './report.ts';
import { summarize } from './summary.ts';

const run = (type: string, channels: number, milliseconds: number) => ({
  ...{ type, channels, round: 1 },
  measurement: { milliseconds, cpuSeconds: 1, kernelCpuSeconds: 0, dataBytes: 2 ** 20, details: {} },
});

describe('charts', () => {
  it("have QEMU's channel counts too, where they are others than mapram's", () => {
    const runs = [run('mapram', 1, 10), run('QEMU x', 1, 30), run('QEMU x', 64, 20)];
    const session = {
      ...{ operation: 'save', workload: 'dense', guestBytes: 2 ** 20, channels: [1], stockChannels: [1, 64] },
      ...{ engines: ['auto'], against: ['qemu'], rounds: 1, dataBytes: 2 ** 20, began: '', seconds: 1, runs },
    };
    const charts = drawCharts({ session, series: summarize(runs, 2 ** 20) } as unknown as Results);
    expect(Object.keys(charts)).toEqual(['save-dense-throughput.svg', 'save-dense-cpu.svg']);
    for (const svg of Object.values(charts)) {
      expect(svg).toContain('>64<');
      expect(svg.match(/<circle/g)).toHaveLength(3);
    }
  });
});
