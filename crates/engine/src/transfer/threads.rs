//! The threads of one transfer.

use std::thread;

use super::{Control, MAX_CHUNKS_IN_FLIGHT, MAX_THREADS, Options};
use crate::io::MAX_QUEUE_DEPTH;
use crate::{Error, ErrorKind, Result};

/// Small requests that one chunk in flight may add to the queue: scattered data needs more than one for a chunk.
const REQUESTS_PER_CHUNK: u32 = 8;

impl Options {
    /// Checks both numbers.
    ///
    /// # Errors
    /// `Usage`.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_CHUNKS_IN_FLIGHT).contains(&self.queue_depth) {
            let message =
                format!("a queue depth of {} is not within 1 to {MAX_CHUNKS_IN_FLIGHT}", self.queue_depth);
            return Err(Error::new(ErrorKind::Usage, message));
        }
        if !(1..=MAX_THREADS).contains(&self.threads) {
            let message = format!("{} threads are not within 1 to {MAX_THREADS}", self.threads);
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok(())
    }

    /// Requests in flight on one thread.
    pub(super) fn requests(&self) -> u32 {
        (self.queue_depth * REQUESTS_PER_CHUNK).min(MAX_QUEUE_DEPTH)
    }

    /// Pool slots of one thread: no more than the chunks that `data_bytes` can fill.
    pub(super) fn slots(&self, data_bytes: u64, chunk_bytes: u64) -> usize {
        let needed = usize::try_from(data_bytes.div_ceil(chunk_bytes)).unwrap_or(usize::MAX);
        needed.clamp(1, self.queue_depth as usize)
    }
}

/// Runs `work` on `threads` threads of their own and waits for all. When one fails, the others stop early.
pub(super) fn run(threads: usize, control: &Control, work: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let mut started = Vec::with_capacity(threads);
        let mut outcomes = Vec::new();
        for index in 0..threads {
            let body = move || work().inspect_err(|_| control.cancel());
            match thread::Builder::new().name(format!("mapram-{index}")).spawn_scoped(scope, body) {
                Ok(handle) => started.push(handle),
                Err(cause) => {
                    control.cancel();
                    outcomes.push(Err(Error::os("starting an engine thread failed", cause)));
                    break;
                }
            }
        }
        let joined =
            started.into_iter().map(|handle| handle.join().unwrap_or_else(|_| Err(panicked(control))));
        outcomes.extend(joined);
        outcomes
    });
    let mut errors: Vec<Error> = outcomes.into_iter().filter_map(Result::err).collect();
    // The threads that stopped because another one failed only say "cancelled".
    let cause = errors.iter().position(|error| error.kind != ErrorKind::Cancelled).unwrap_or(0);
    if errors.is_empty() { Ok(()) } else { Err(errors.swap_remove(cause)) }
}

fn panicked(control: &Control) -> Error {
    control.cancel();
    Error::new(ErrorKind::Io, "an engine thread panicked; this is a bug in mapram")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_first_real_failure_is_reported_and_stops_the_others() {
        let control = Control::default();
        let turn = AtomicUsize::new(0);
        let outcome = run(4, &control, &|| {
            if turn.fetch_add(1, Ordering::Relaxed) == 2 {
                return Err(Error::new(ErrorKind::NoSpace, "full"));
            }
            loop {
                control.check()?;
                thread::yield_now();
            }
        });
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::NoSpace);
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let outcome = run(1, &Control::default(), &|| panic!("on purpose"));
        assert!(outcome.unwrap_err().message.contains("panicked"));
    }
}
