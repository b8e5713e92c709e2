import { test } from 'vitest';
import { kvmRefusal } from './accelerator.ts';

// Stands for the tests under KVM where there is none (vitest.config.ts).
test('guests under KVM are saved and restored', (context) => {
  context.skip(kvmRefusal() ?? 'KVM has come up since');
});
