//! The threads of one transfer.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLockReadGuard};
use std::thread;

use super::chunks::{Chunk, ChunkQueue, Turn};
use super::{Control, MAX_CHUNKS_IN_FLIGHT, MAX_POOL_BYTES, MAX_THREADS, Options, to_usize};
use crate::error::require;
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
        let depth = self.queue_depth;
        require((1..=MAX_CHUNKS_IN_FLIGHT).contains(&depth), || {
            format!("a queue depth of {depth} is not within 1 to {MAX_CHUNKS_IN_FLIGHT}")
        })?;
        check(self.threads)
    }

    /// Requests that one thread may have in flight.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.queue_depth.saturating_mul(REQUESTS_PER_CHUNK).min(MAX_QUEUE_DEPTH)
    }

    /// Pool slots of one thread: no more than its share of the chunks can fill, for the kernel may touch all of them.
    pub(super) fn slots(&self, data_bytes: u64, chunk_bytes: u64) -> usize {
        let share = to_usize(data_bytes.div_ceil(chunk_bytes).div_ceil(self.threads as u64));
        let most = (self.queue_depth as usize).min(to_usize(MAX_POOL_BYTES / chunk_bytes)).max(1);
        share.clamp(1, most)
    }
}

/// The threads of one transfer, as each of them sees the others.
pub(super) struct Team<'a> {
    /// Progress and cancel, shared with the transfer's owner.
    pub control: &'a Control,
    /// Set when one of them ends badly.
    stopped: AtomicBool,
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl<'a> Team<'a> {
    fn new(threads: usize, control: &'a Control) -> Self {
        let (stopped, changed) = (AtomicBool::new(false), Condvar::new());
        Self { control, stopped, waiting: Mutex::new(threads), changed }
    }

    /// `Cancelled` once the transfer was cancelled or another thread has failed.
    pub fn check(&self) -> Result<()> {
        self.control.check()?;
        if self.stopped.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Cancelled, "another thread failed"));
        }
        Ok(())
    }

    /// To be held while guest memory is looked at; `Cancelled` as by [`check`](Self::check).
    pub fn reading(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let reading = self.control.reading();
        self.check()?;
        Ok(reading)
    }

    /// Hands out chunks until none is left.
    pub fn each_chunk(&self, chunks: &ChunkQueue<'_>, look: impl Fn(Chunk) -> Result<()>) -> Result<()> {
        let mut turn = Turn::default();
        while let Some(chunk) = chunks.next(&mut turn) {
            let _reading = self.reading()?;
            look(chunk)?;
        }
        Ok(())
    }

    /// Waits until every thread has come here, so that none begins what others cannot join in; `Cancelled` as by
    /// [`check`](Self::check).
    pub fn wait_for_all(&self) -> Result<()> {
        let mut missing = self.lock();
        *missing -= 1;
        self.changed.notify_all();
        let is_early = |missing: &mut usize| *missing > 0 && !self.stopped.load(Ordering::SeqCst);
        drop(self.changed.wait_while(missing, is_early).unwrap_or_else(PoisonError::into_inner));
        self.check()
    }

    /// Stops the others. Told to the owner at once, for this thread may have to wait long for what it has in flight.
    pub fn fail(&self) {
        let missing = self.lock();
        self.stopped.store(true, Ordering::SeqCst);
        drop(missing);
        self.control.note_failure();
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// # Errors
/// `Usage` for a number of threads that is not within 1 to [`MAX_THREADS`].
pub(super) fn check(threads: usize) -> Result<()> {
    let is_possible = (1..=MAX_THREADS).contains(&threads);
    require(is_possible, || format!("{threads} threads are not within 1 to {MAX_THREADS}"))
}

/// Runs `work` on `threads` threads of their own and waits for all. When one fails, the others stop early.
///
/// # Errors
/// `Usage` for a number of threads that is not within 1 to [`MAX_THREADS`], or the first failure of a thread.
pub(super) fn run(
    threads: usize,
    control: &Control,
    work: &(dyn Fn(&Team<'_>) -> Result<()> + Sync),
) -> Result<()> {
    check(threads)?;
    let team = &Team::new(threads, control);
    let body = move || {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| work(team))).unwrap_or_else(|_| panicked());
        outcome.inspect_err(|_| team.fail())
    };
    let cause = thread::scope(|scope| {
        let start = |index| {
            let started = thread::Builder::new().name(format!("mapram-{index}")).spawn_scoped(scope, body);
            started.map_err(|cause| {
                team.fail();
                Error::os("starting an engine thread failed", cause).with_kind(ErrorKind::HostUnsupported)
            })
        };
        let started: Vec<_> = (0..threads).map(start).collect();
        let join =
            |thread: thread::ScopedJoinHandle<'_, Result<()>>| thread.join().unwrap_or_else(|_| panicked());
        let errors = started.into_iter().filter_map(|thread| thread.and_then(join).err());
        // The threads that stopped because another one failed only say "cancelled".
        errors.min_by_key(|error| error.kind == ErrorKind::Cancelled)
    });
    cause.map_or(Ok(()), Err)
}

fn panicked() -> Result<()> {
    Err(Error::internal("an engine thread panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn the_first_real_failure_is_reported_and_stops_the_others() {
        let control = Control::default();
        let turn = AtomicUsize::new(0);
        let outcome = run(4, &control, &|team| {
            if turn.fetch_add(1, Ordering::Relaxed) == 2 {
                return Err(Error::new(ErrorKind::NoSpace, "full"));
            }
            loop {
                team.check()?;
                thread::yield_now();
            }
        });
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::NoSpace);
        assert!(control.progress().stopping);
        assert!(control.check().is_ok(), "a failure is not a cancel of the owner's");
    }

    #[test]
    fn nobody_goes_on_if_one_fails_before_all_have_come() {
        let turn = AtomicUsize::new(0);
        let passed = AtomicUsize::new(0);
        let outcome = run(3, &Control::default(), &|team| {
            if turn.fetch_add(1, Ordering::Relaxed) == 1 {
                return Err(Error::new(ErrorKind::HostUnsupported, "no ring"));
            }
            team.wait_for_all()?;
            passed.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::HostUnsupported);
        assert_eq!(passed.into_inner(), 0);
    }

    #[test]
    fn a_number_of_threads_out_of_range_is_refused() {
        for threads in [0, MAX_THREADS + 1, usize::MAX] {
            let outcome = run(threads, &Control::default(), &|_| Ok(()));
            assert_eq!(outcome.unwrap_err().kind, ErrorKind::Usage);
        }
    }

    #[test]
    fn options_out_of_range_are_refused_before_anything_is_divided_by_them() {
        let options = |queue_depth, threads| Options { queue_depth, threads }.validate().map_err(|e| e.kind);
        assert_eq!(options(1, 1), Ok(()));
        for (queue_depth, threads) in [(0, 1), (MAX_CHUNKS_IN_FLIGHT + 1, 1), (1, 0), (1, MAX_THREADS + 1)] {
            assert_eq!(options(queue_depth, threads), Err(ErrorKind::Usage));
        }
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let outcome = run(1, &Control::default(), &|_| panic!("on purpose"));
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::Internal);
    }
}
