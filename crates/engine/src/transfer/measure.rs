//! How much a save would write, without writing anything.

use std::sync::atomic::{AtomicU64, Ordering};

use super::chunks::ChunkQueue;
use super::gather::gather;
use super::{Control, Plan, threads, to_usize};
use crate::Result;
use crate::bitmap::PageRun;
use crate::memory::Memory;
use crate::pool::Pool;

/// Reads everything that is planned and counts the bytes that a save would write: pages that are not zero, and short
/// runs of zero pages between them. The guest may be running; the count is then as of no particular moment.
///
/// # Errors
/// `Cancelled`, or whatever the memory said.
pub fn measure(memory: &Memory, plan: &Plan, threads: usize, control: &Control) -> Result<u64> {
    let chunks = ChunkQueue::new(plan);
    let counted = AtomicU64::new(0);
    threads::run(threads, control, &|team| {
        let pool = Pool::new(1, to_usize(plan.chunk_bytes))?;
        team.each_chunk(&chunks, |chunk| {
            // SAFETY: the buffer holds a whole chunk and is this thread's alone.
            let data = unsafe { gather(memory, &chunk, plan.content, pool.slot(0)) }?;
            counted.fetch_add(data.requests.iter().map(PageRun::length).sum(), Ordering::Relaxed);
            Ok(())
        })
    })?;
    Ok(counted.into_inner())
}
