import { execFileSync } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';

/** Debian's package of each tool that only the bench needs. */
const PACKAGES = { fio: 'fio', hyperfine: 'hyperfine', 'mkfs.xfs': 'xfsprogs' };

/** Installs the tools that are not here, and says so. Throws where that takes root or another system's package manager. */
export function needTools(tools: (keyof typeof PACKAGES)[], say: (text: string) => void): void {
  const packages = tools.filter((tool) => !isInstalled(tool)).map((tool) => PACKAGES[tool]);
  if (packages.length === 0) return;
  const command = ['apt-get', 'install', '-y', '--no-install-recommends', ...packages];
  if (process.getuid?.() !== 0 || !isInstalled('apt-get'))
    throw new Error(`please install, as root: ${command.join(' ')}`);
  say(`installing ${packages.join(' ')}`);
  execFileSync('apt-get', ['update', '-qq'], { stdio: 'ignore' });
  execFileSync('apt-get', command.slice(1), {
    stdio: 'ignore',
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
  });
}

function isInstalled(tool: string): boolean {
  const directories = [...(process.env['PATH'] ?? '').split(':'), '/usr/sbin', '/sbin'];
  return directories.some((directory) => {
    try {
      accessSync(join(directory, tool), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
