import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

// Imports run one way: cli -> save, restore, inspect, doctor -> guest, plan, image, native; guest -> native;
// plan -> image; image and plan import neither of the other two. docs/architecture.md says why.
// Circles within a layer are Biome's matter (noImportCycles, types included).

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

/** The layer of each folder under src/: a new folder is entered here. */
const FOLDERS = new Map<string, Layer>([
  ['cli', 'cli'],
  ['save', 'commands'],
  ['restore', 'commands'],
  ['doctor', 'commands'],
  ['guest', 'guest'],
  ['plan', 'plan'],
  ['image', 'image'],
]);

/** The layer of a file by its path under src/, undefined in a folder that has none. Files in no folder are commands'. */
function layerOf(path: string): Layer | undefined {
  const [first = '', ...rest] = path.split(sep);
  if (rest.length > 0) return FOLDERS.get(first);
  if (first === 'native.ts' || first === 'addon.ts') return 'native';
  // Codes, words and waits, which everything may import.
  return ['errors.ts', 'choices.ts', 'units.ts', 'within.ts'].includes(first) ? 'errors' : 'commands';
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
  if (from === undefined) return [`${path} is in a folder that has no layer yet`];
  const found: string[] = [];
  for (const specifier of importsOf(source)) {
    if (!isOurs(specifier)) continue;
    const to = targetLayer(path, specifier);
    if (to !== undefined && (to === from || ALLOWED[from].includes(to))) continue;
    found.push(`${path} (${from}) imports ${specifier} (${to ?? 'no layer'})`);
  }
  return found;
}

function isOurs(specifier: string): boolean {
  return specifier === '@mapram/native' || specifier.startsWith('.');
}

function targetLayer(path: string, specifier: string): Layer | undefined {
  if (specifier === '@mapram/native') return 'package:native';
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
    ['doctor/host.ts', "import { describeSave } from '../cli/results.ts';"],
    ['cli/main.ts', "import { Job } from '../native.ts';"],
    ['errors.ts', "import { save } from './save.ts';"],
    ['unheard-of/room.ts', "import { MapramError } from '../errors.ts';"],
    ['unheard-of/room.ts', ''],
    ['save.ts', "import { room } from './unheard-of/room.ts';"],
    ['image/reader.ts', "import { name } from '../../package.json';"],
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
