export { MAX_CHANNELS, planTransfer, type TransferPlan } from './plan.ts';
