//! Planned page ranges on their way between guest memory and an image file.
//!
//! All transfers to or from a file are stages on one `pump`. It runs on a few threads, each with one I/O queue and one pool of chunk buffers;
//! each takes the chunks of one channel after the other and keeps several in flight. All engines' short results and
//! transient errors are handled in one place, `requests`.

mod buffers;
mod chunks;
mod clear;
mod compare;
mod control;
mod gather;
mod measure;
mod plan;
mod pump;
mod requests;
mod restore;
mod room;
mod save;
mod threads;

use crate::bitmap::{PageBitmap, PageRun};
use crate::error::require;
use crate::memory::{Extent, Memory};
use crate::{PAGE_BYTES, Result, to_usize};

pub use buffers::Buffers;
pub use chunks::{Chunk, ChunkQueue, Turn};
pub use clear::clear;
pub use compare::{CompareJob, Difference};
pub use control::{Control, Progress};
pub use measure::measure;
pub use plan::{BlockPlan, Content, Plan};
pub use restore::RestoreJob;
pub use room::require_room;
pub use save::SaveJob;

/// Most threads of one transfer.
pub const MAX_THREADS: usize = 64;
/// Most chunks that one thread keeps in flight.
pub const MAX_CHUNKS_IN_FLIGHT: u32 = 256;
/// Most bytes of buffers of one thread; a queue depth that needs more is cut to what fits.
pub const MAX_POOL_BYTES: u64 = 128 << 20;
/// Smallest and largest chunk, in bytes.
pub const CHUNK_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(64 << 20);
/// Longest run of zero pages between data that is transferred along with it rather than splitting a request.
///
/// One request of 4 MiB costs the disk far less than a hundred small ones (docs/performance.md).
pub const JOINED_ZERO_PAGES: u64 = 16;

/// How a transfer runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Chunks in flight on each thread, 1 to [`MAX_CHUNKS_IN_FLIGHT`].
    pub queue_depth: u32,
    /// Threads, 1 to [`MAX_THREADS`].
    pub threads: usize,
}

/// What a finished save has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// Bytes written to the image's page areas, joined zero pages included.
    pub image_bytes: u64,
    /// Planned bytes that were copied to a buffer of ours; the others were written from where they are.
    pub copied_bytes: u64,
}

/// The parts of a chunk that may be written and whose pages' bits are `set`.
fn writable<'a>(
    memory: &'a Memory,
    bitmaps: &'a [PageBitmap],
    chunk: &'a Chunk,
    set: bool,
) -> impl Iterator<Item = Extent> {
    chunk.extents.iter().flat_map(move |extent| {
        let parts = memory.writable_parts(chunk.block, extent.bytes());
        let runs = parts.flat_map(move |part| bitmaps[chunk.block].runs(PageRun::of(part), set));
        runs.map(|run| Extent { offset: run.bytes().start, length: run.length(), ..*extent })
    })
}

/// # Errors
/// `Usage` if the bitmaps are not those of the blocks.
fn check_bitmaps(memory: &Memory, bitmaps: &[PageBitmap]) -> Result<()> {
    let pages = memory.blocks().iter().map(|length| length / PAGE_BYTES);
    let are_theirs = bitmaps.iter().map(PageBitmap::pages).eq(pages);
    require(are_theirs, || "the page bitmaps are not those of the RAM blocks")
}
