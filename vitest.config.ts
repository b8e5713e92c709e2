import { defineConfig } from 'vitest/config';
import { kvmRefusal } from './test/support/accelerator.ts';

/** Nothing takes that long; a busy machine may. */
const INTEROP = { testTimeout: 300_000, hookTimeout: 300_000 };

/** What the accelerator may matter to: states, memory that KVM maps as well, and faults. */
const UNDER_KVM = [
  ...['accelerator', 'matrix', 'stock', 'run-state', 'mismatch', 'idle'],
  ...['interrupted', 'refusals', 'other-user', 'read-only-memory'],
];

export default defineConfig({
  test: {
    // Interop tests run two QEMUs each on two cores.
    maxWorkers: 2,
    projects: [
      { test: { name: 'unit', include: ['packages/mapram/src/**/*.test.ts', 'bench/**/*.test.ts'] } },
      { test: { name: 'interop', include: ['test/*.test.ts'], ...INTEROP } },
      {
        test: {
          name: 'kvm',
          // Without KVM one test is left, which is skipped and says why.
          include:
            kvmRefusal() === undefined
              ? UNDER_KVM.map((name) => `test/${name}.test.ts`)
              : ['test/support/kvm.test.ts'],
          env: { MAPRAM_TEST_ACCELERATOR: 'kvm' },
          ...INTEROP,
        },
      },
    ],
  },
});
