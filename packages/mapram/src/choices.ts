/** The I/O engines that can be named; `auto` takes the best one that works on this host. */
export const ENGINES = ['auto', 'io-uring', 'tokio-uring', 'blocking'] as const;
/** An I/O engine; `auto` takes the best one that works on this host. */
export type Engine = (typeof ENGINES)[number];

/** When pages are copied to buffers on their way. */
export const COPIES = ['auto', 'always', 'never'] as const;
/** Whether pages are copied on their way. */
export type Copy = (typeof COPIES)[number];
