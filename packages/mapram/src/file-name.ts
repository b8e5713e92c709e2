/** Half of a surrogate pair, or what Node puts in the place of bytes that are no UTF-8. */
const NO_UTF8 = /\p{Surrogate}|\uFFFD/u;

/**
 * Why `path` cannot be used for a file, or undefined if it can. A name that is no UTF-8 reaches us changed, and so would be that of
 * another file.
 */
export function pathFault(path: string): string | undefined {
  if (path === '') return 'it is empty';
  if (path.includes('\0')) return 'it holds a NUL character';
  return NO_UTF8.test(path) ? 'it is not UTF-8, and other names cannot be used' : undefined;
}
