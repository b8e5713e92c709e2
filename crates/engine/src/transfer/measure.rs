//! How much a save would write, without writing anything.

use std::sync::atomic::{AtomicU64, Ordering};

use super::chunks::{Chunk, ChunkQueue};
use super::gather::gather;
use super::pump::{Pump, Stage};
use super::requests::Request;
use super::{Control, Plan, threads, to_usize};
use crate::memory::Memory;
use crate::pool::Pool;
use crate::{PAGE_BYTES, Result};

/// Reads everything that is planned and counts the bytes that a save would write: pages that are not zero, and short
/// runs of zero pages between them. The guest may be running; the count is then as of no particular moment.
///
/// # Errors
/// `Cancelled`, or whatever the memory said.
pub fn measure(memory: &Memory, plan: &Plan, threads: usize, control: &Control) -> Result<u64> {
    let chunks = ChunkQueue::new(plan);
    let stage = Measure { memory, plan, counted: AtomicU64::new(0) };
    threads::run(threads, control, &|team| {
        let pool = Pool::new(1, to_usize(plan.chunk_bytes()))?;
        Pump::without_io(team, &pool).run(&stage, &chunks)
    })?;
    Ok(stage.counted.into_inner())
}

struct Measure<'a> {
    memory: &'a Memory,
    plan: &'a Plan,
    counted: AtomicU64,
}

// SAFETY: it asks for no requests.
unsafe impl Stage for Measure<'_> {
    type Pending = ();

    fn start<'a>(&'a self, chunk: &Chunk, buffer: *mut u8, _: &mut Vec<Request<'a>>) -> Result<()> {
        // SAFETY: the buffer holds a whole chunk, and nothing is in flight on it.
        let data = unsafe { gather(self.memory, chunk, self.plan.gaps(), buffer) }?;
        let pages: u64 = data.requests.iter().map(|run| run.count).sum();
        self.counted.fetch_add(pages * PAGE_BYTES, Ordering::Relaxed);
        Ok(())
    }

    fn finish(&self, (): (), _buffer: *mut u8) -> Result<()> {
        Ok(())
    }
}
