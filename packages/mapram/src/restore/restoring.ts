import type { WaitingGuest } from '../guest/incoming.ts';
import type { GuestOwner } from '../guest/owner.ts';
import type { OpenImage } from '../image-file.ts';
import type { JobContext } from '../job.ts';
import type { Transfer } from '../options.ts';
import type { RunStatePlan } from './run-state.ts';

/** Everything that the steps of one restore into a guest share. */
export interface Restoring {
  /** The image, read and checked. */
  opened: OpenImage;
  /** How pages are moved. */
  how: Transfer;
  job: JobContext;
  /** The QEMU that is to hold the guest. */
  owner: GuestOwner;
  /** What it was when we came. */
  waiting: WaitingGuest;
  /** The state that the guest shall end in. */
  runState: RunStatePlan;
}

/** What of it a restore into any memory needs. */
export type Reading = Pick<Restoring, 'opened' | 'how' | 'job'>;
