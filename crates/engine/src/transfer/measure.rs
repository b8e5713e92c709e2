//! How much a save would write, without writing anything.

use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::{ChunkQueue, Seat, Sources};
use super::read::read_data;
use super::save::join;
use super::{Control, Place, Plan, threads, to_usize};
use crate::memory::Memory;
use crate::pool::Pool;
use crate::{PAGE_BYTES, Result};

/// Reads everything that is planned and counts the bytes that a save would write: pages that are not zero, and short
/// runs of zero pages between them. The guest may be running; the count is then as of no particular moment.
///
/// # Errors
/// `Usage` for a plan that does not fit, `Cancelled`, or whatever the memory said.
pub fn measure(memory: &Memory, plan: Plan, threads: usize, control: &Control) -> Result<u64> {
    let places: Vec<Place> =
        memory.blocks().iter().map(|&length| Place { pages_offset: 0, length }).collect();
    plan.validate(&places, memory, Sources::Used)?;
    let chunk_bytes = to_usize(plan.chunk_bytes);
    let chunks = ChunkQueue::new(plan);
    let written_bytes = AtomicU64::new(0);
    threads::run(threads, control, &|team| {
        let pool = Pool::new(1, chunk_bytes)?;
        let mut seat = Seat::default();
        while let Some(chunk) = chunks.next(&mut seat) {
            team.check()?;
            // SAFETY: the slot holds a whole chunk and belongs to this thread alone.
            let runs = unsafe { read_data(memory, &chunk, pool.slot(0)) }?;
            let pages: u64 = join(&runs).map(|run| run.count).sum();
            written_bytes.fetch_add(pages * PAGE_BYTES, Ordering::Relaxed);
        }
        Ok(())
    })?;
    Ok(written_bytes.into_inner())
}
