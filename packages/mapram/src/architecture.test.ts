import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

// Imports run one way: cli -> save, restore, inspect, doctor -> guest, plan, image, native; guest -> native;
// plan -> image; image and plan import neither of the other two. docs/architecture.md says why.

const SOURCE = dirname(fileURLToPath(import.meta.url));

type Layer = 'cli' | 'commands' | 'guest' | 'plan' | 'image' | 'native' | 'errors' | 'package:native';

/** What each layer may import besides itself. Pure layers have the shortest lists. */
const ALLOWED: Record<Layer, readonly Layer[]> = {
  cli: ['commands', 'errors'],
  commands: ['guest', 'plan', 'image', 'native', 'errors'],
  guest: ['native', 'errors'],
  plan: ['image', 'errors'],
  image: ['errors'],
  native: ['errors', 'package:native'],
  errors: [],
  'package:native': [],
};

/** The layer of a file by its path under src/; whatever is in no folder of its own is on the commands' level. */
function layerOf(path: string): Layer {
  const [first = '', ...rest] = path.split(sep);
  if (rest.length === 0) {
    if (first === 'native.ts') return 'native';
    return first === 'errors.ts' ? 'errors' : 'commands';
  }
  if (first === 'cli' || first === 'guest' || first === 'plan' || first === 'image') return first;
  return 'commands';
}

/** Every module named by an import or export declaration or a dynamic import. */
function importsOf(source: string): string[] {
  const declaration = /^\s*(?:import|export)\s(?:[^'"`;]*?\sfrom\s*)?['"]([^'"]+)['"]/gm;
  const dynamic = /\bimport\(\s*['"]([^'"]+)['"]\s*\)/g;
  return [...source.matchAll(declaration), ...source.matchAll(dynamic)].map((match) => match[1] ?? '');
}

/** Sentences about the imports of `path` (relative to src/) that its layer may not have. */
function violations(path: string, source: string): string[] {
  const from = layerOf(path);
  const found: string[] = [];
  for (const specifier of importsOf(source)) {
    const to = targetLayer(path, specifier);
    if (to === undefined || to === from || ALLOWED[from].includes(to)) continue;
    found.push(`${path} (${from}) imports ${specifier} (${to})`);
  }
  return found;
}

function targetLayer(path: string, specifier: string): Layer | undefined {
  if (specifier === '@mapram/native') return 'package:native';
  if (!specifier.startsWith('.')) return undefined;
  return layerOf(relative(SOURCE, join(SOURCE, dirname(path), specifier)));
}

/** Modules of Node that do I/O: pure layers may not have them either. */
function impurities(path: string, source: string): string[] {
  const layer = layerOf(path);
  if (layer !== 'image' && layer !== 'plan') return [];
  return importsOf(source)
    .filter((specifier) => specifier.startsWith('node:'))
    .map((specifier) => `${path} (${layer}) imports ${specifier}`);
}

function productFiles(): string[] {
  return readdirSync(SOURCE, { recursive: true, encoding: 'utf8' }).filter(
    (path) => path.endsWith('.ts') && !path.endsWith('.test.ts') && !path.endsWith('.d.ts'),
  );
}

describe('imports run one way', () => {
  it('in every file', () => {
    const files = productFiles();
    expect(files.length).toBeGreaterThan(10);
    const found = files.flatMap((path) => violations(path, readFileSync(join(SOURCE, path), 'utf8')));
    expect(found).toEqual([]);
  });

  it('and image and plan do no I/O', () => {
    const found = productFiles().flatMap((path) =>
      impurities(path, readFileSync(join(SOURCE, path), 'utf8')),
    );
    expect(found).toEqual([]);
  });
});

describe('the import rule', () => {
  const forbidden: [path: string, source: string][] = [
    ['image/reader.ts', "import { Job } from '../native.ts';"],
    ['image/reader.ts', "import type { Qmp } from '../guest/qmp.ts';"],
    ['image/reader.ts', "import * as native from '@mapram/native';"],
    ['plan/plan.ts', "export { scan } from '../native.ts';"],
    ['plan/plan.ts', "const { scan } = await import('../native.ts');"],
    ['guest/qmp.ts', "import {\n  readImage,\n  type Image,\n} from '../image/index.ts';"],
    ['guest/qmp.ts', "import '../save.ts';"],
    ['guest/qmp.ts', "import { GuestMemory } from '@mapram/native';"],
    ['save.ts', "import { main } from './cli/main.ts';"],
    ['report/index.ts', "import { formatBytes } from '../cli/units.ts';"],
    ['cli/main.ts', "import { Job } from '../native.ts';"],
    ['errors.ts', "import { save } from './save.ts';"],
  ];
  it.each(forbidden)('refuses in %s: %s', (path, source) => {
    expect(violations(path, source)).toHaveLength(1);
  });

  const allowed: [path: string, source: string][] = [
    ['cli/main.ts', "const { save } = await import('../save.ts');"],
    ['save.ts', "import { Job } from './native.ts';\nimport { readImage } from './image/index.ts';"],
    ['guest/qmp.ts', "import { UnixConnection } from '../native.ts';\nimport { x } from './events.ts';"],
    ['image/reader.ts', "import { MapramError } from '../errors.ts';\n// import { Job } from '../native.ts'"],
    ['native.ts', "import { GuestMemory } from '@mapram/native';"],
  ];
  it.each(allowed)('lets pass in %s: %s', (path, source) => {
    expect(violations(path, source)).toEqual([]);
  });

  it('refuses I/O in a pure layer', () => {
    expect(impurities('image/reader.ts', "import { readFileSync } from 'node:fs';")).toHaveLength(1);
    expect(impurities('save.ts', "import { readFileSync } from 'node:fs';")).toEqual([]);
  });
});
