import { MapramError } from '../errors.ts';

/**
 * The error for an image that is not what the format allows.
 *
 * @param offset where in the file the offending field stands.
 */
export function invalid(message: string, offset: number, field: string): MapramError {
  return new MapramError('E_IMAGE_INVALID', `${message} (${field} at offset ${offset})`, { offset, field });
}
