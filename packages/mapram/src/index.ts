export type { Copy, Engine } from './choices.ts';
export { type ErrorCode, type ErrorContext, type GuestState, MapramError } from './errors.ts';
export type { Guest, MonitoredGuest, QmpGuest } from './guest/link.ts';
export type { ExecuteOptions, Monitor, MonitorEvent, MonitorEvents } from './guest/monitor.ts';
export { type InspectedBlock, type InspectOptions, type InspectReport, inspect } from './inspect.ts';
export type { JobPromise, Phase, Progress } from './job.ts';
export type { NamedMemory } from './native.ts';
export type {
  GuestRestoreOptions,
  GuestSaveOptions,
  MemoryBlock,
  MemoryRestoreOptions,
  MemorySaveOptions,
  RestoreOptions,
  SaveOptions,
  TransferOptions,
} from './options.ts';
export type {
  BlockReport,
  MemoryRestoreReport,
  RestoreReport,
  SaveReport,
  TransferReport,
} from './report.ts';
export { restore } from './restore.ts';
export { save } from './save.ts';
