export { MAX_CHANNELS, MIN_CHUNK_BYTES, type PlanOptions, planTransfer, type TransferPlan } from './plan.ts';
