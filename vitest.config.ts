import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    // Interop tests run two QEMUs each on two cores.
    maxWorkers: 2,
    projects: [
      { test: { name: 'unit', include: ['packages/mapram/src/**/*.test.ts', 'bench/**/*.test.ts'] } },
      {
        test: {
          name: 'interop',
          include: ['test/**/*.test.ts'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
