export { bytesIn } from './extents.ts';
export { MAX_CHANNELS, planTransfer, type TransferPlan } from './plan.ts';
