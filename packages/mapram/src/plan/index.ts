export { bytesIn, MAX_CHANNELS, planTransfer, type TransferPlan } from './plan.ts';
