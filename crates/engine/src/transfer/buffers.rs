//! The pools of a save, made while the guest still runs.

use std::sync::{Mutex, PoisonError};

use super::plan::check_chunk_bytes;
use super::{Options, to_usize};
use crate::Result;
use crate::pool::Pool;

/// Pools with their memory at hand: the kernel clears it first, and a virtual machine may have to fetch it from its host,
/// which takes longer than everything else around the pages of a small guest.
#[derive(Debug, Default)]
pub struct Buffers {
    pools: Mutex<Vec<Pool>>,
}

impl Buffers {
    /// Makes one pool for each thread of a transfer of about `data_bytes`, in chunks of `chunk_bytes`.
    ///
    /// # Errors
    /// `Usage` for options or sizes that are not possible, or the errno of mmap(2).
    pub fn prepare(&self, options: Options, data_bytes: u64, chunk_bytes: u64) -> Result<()> {
        options.validate()?;
        check_chunk_bytes(chunk_bytes)?;
        let slots = options.slots(data_bytes, chunk_bytes);
        let pools = (0..options.threads).map(|_| {
            let pool = Pool::new(slots, to_usize(chunk_bytes))?;
            // SAFETY: the pool is new.
            unsafe { pool.touch() };
            Ok(pool)
        });
        let pools = pools.collect::<Result<Vec<_>>>()?;
        *self.pools.lock().unwrap_or_else(PoisonError::into_inner) = pools;
        Ok(())
    }

    /// A pool that was prepared, if its slots hold `slot_bytes`, or else a new one with so many slots.
    pub(super) fn take(&self, slots: usize, slot_bytes: usize) -> Result<Pool> {
        let prepared = self.pools.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match prepared.filter(|pool| pool.stride() >= slot_bytes) {
            Some(pool) => Ok(pool),
            None => Pool::new(slots, slot_bytes),
        }
    }

    /// Frees what was not taken.
    pub fn clear(&self) {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
