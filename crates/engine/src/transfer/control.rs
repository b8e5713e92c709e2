//! Progress counters and the cancel flag that a running transfer shares with its caller.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Error, ErrorKind, Result};

/// Shared by a transfer's threads and whoever watches or cancels it.
#[derive(Debug, Default)]
pub struct Control {
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
}

/// Bytes of planned data handled so far, of all planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read from their source so far.
    pub bytes_done: u64,
    /// Bytes planned; 0 until the transfer has started.
    pub bytes_total: u64,
}

impl Control {
    /// Asks the transfer to stop: nothing more is submitted, what is in flight is waited for.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// How far the transfer is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            bytes_done: self.done.load(Ordering::Relaxed),
            bytes_total: self.total.load(Ordering::Relaxed),
        }
    }

    /// An error of kind `Cancelled` once [`cancel`](Self::cancel) was called.
    ///
    /// # Errors
    /// See above; never anything else.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "the job was cancelled"));
        }
        Ok(())
    }

    pub(super) fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}
