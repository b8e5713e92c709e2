//! What a running transfer tells whoever watches it, and hears from whoever cancels it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::{Error, ErrorKind, Result};

/// Shared by a transfer's threads and whoever watches or cancels it. Only its owner cancels it: what stops the threads
/// of one transfer when one of them fails is their own.
#[derive(Debug, Default)]
pub struct Control {
    cancelled: AtomicBool,
    failed: AtomicBool,
    done: AtomicU64,
    completions: AtomicU64,
    /// Read-locked by threads that look at guest memory; locked for writing only to see whether any does.
    reading: RwLock<()>,
    writing_since: OnceLock<Instant>,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of planned data handled so far.
    pub bytes_done: u64,
    /// I/O requests that have ended so far; stands still where the storage does not answer.
    pub completions: u64,
    /// Whether it was cancelled or has failed, and only waits for what is in flight.
    pub stopping: bool,
    /// Whether a thread looks at guest memory. Once this is `false` of a transfer that stops, none will again.
    pub reading: bool,
    /// How long ago the first byte was written to guest memory; `None` before that.
    pub writing_for: Option<Duration>,
}

impl Control {
    /// Asks the transfer to stop: nothing more is submitted, what is in flight is waited for.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    /// How far the transfer is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let is_set = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        let reading = self.reading.try_write().is_err();
        Progress {
            bytes_done: self.done.load(Ordering::Relaxed),
            completions: self.completions.load(Ordering::Relaxed),
            stopping: is_set(&self.cancelled) || is_set(&self.failed),
            reading,
            writing_for: self.writing_since.get().map(Instant::elapsed),
        }
    }

    /// An error of kind `Cancelled` once [`cancel`](Self::cancel) was called.
    ///
    /// # Errors
    /// See above; never anything else.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Cancelled, "the job was cancelled"));
        }
        Ok(())
    }

    /// Called by a thread that fails, before it waits for what it has in flight.
    pub(super) fn note_failure(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Called right before guest memory is written to.
    pub(super) fn note_writing(&self) {
        self.writing_since.get_or_init(Instant::now);
    }

    /// To be held by a thread while it looks at guest memory. It has to [`check`](Self::check) afterwards, and before it
    /// looks: either it sees the cancel, or whoever cancelled sees it.
    pub(super) fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.reading.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_completions(&self, count: usize) {
        self.completions.fetch_add(count as u64, Ordering::Relaxed);
    }
}
