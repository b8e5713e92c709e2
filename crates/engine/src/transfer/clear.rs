//! Making guest memory read zero where the image has no page.

use std::sync::atomic::{AtomicU64, Ordering};

use super::chunks::{Chunk, ChunkQueue};
use super::gather::gather;
use super::pump::{Pump, Stage};
use super::requests::Request;
use super::{CHUNK_BYTES, Control, Gaps, Plan, check_bitmaps, threads, to_usize};
use crate::bitmap::{PageBitmap, PageRun};
use crate::memory::{Extent, Memory, Piece};
use crate::pool::Pool;
use crate::{PAGE_BYTES, Result};

/// Most bytes that are looked at in one go.
const MAX_CHUNK_BYTES: u64 = 1 << 20;

/// Makes every page whose bit is clear read zero, whatever the memory held before; returns the bytes that held something
/// else. Pages that are zero already are left alone: whoever set them aside wants them there, and holes are to stay holes.
/// So is memory that is mapped for reading only.
///
/// # Errors
/// `Usage` if the bitmaps are not those of the blocks, `Io` if a file of the memory was cut, `Cancelled`, or whatever the
/// memory said.
pub fn clear(memory: &Memory, bitmaps: &[PageBitmap], threads: usize, control: &Control) -> Result<u64> {
    memory.prepare_to_write()?;
    let plan = plan(memory, MAX_CHUNK_BYTES)?;
    let chunks = ChunkQueue::new(&plan);
    let clearing = Clear::new(memory, bitmaps, control)?;
    threads::run(threads, control, &|team| {
        let pool = Pool::new(1, to_usize(plan.chunk_bytes()))?;
        team.wait_for_all()?;
        Pump::without_io(team, &pool).run(&clearing, &chunks)
    })?;
    memory.check_not_cut()?;
    Ok(clearing.cleared_bytes())
}

/// All that may not be zero, in chunks for buffers of `buffer_bytes`.
///
/// # Errors
/// As [`Memory::scan`].
pub(super) fn plan(memory: &Memory, buffer_bytes: u64) -> Result<Plan> {
    Plan::of_all(memory, buffer_bytes.min(MAX_CHUNK_BYTES).max(*CHUNK_BYTES.start()))
}

/// What several threads clear together.
pub(super) struct Clear<'a> {
    memory: &'a Memory,
    bitmaps: &'a [PageBitmap],
    control: &'a Control,
    zeros: Vec<u8>,
    cleared: AtomicU64,
}

impl<'a> Clear<'a> {
    /// # Errors
    /// `Usage` if the bitmaps are not those of the blocks.
    pub fn new(memory: &'a Memory, bitmaps: &'a [PageBitmap], control: &'a Control) -> Result<Self> {
        check_bitmaps(memory, bitmaps)?;
        let zeros = vec![0; to_usize(MAX_CHUNK_BYTES)];
        Ok(Self { memory, bitmaps, control, zeros, cleared: AtomicU64::new(0) })
    }

    /// Bytes that held something else.
    pub fn cleared_bytes(&self) -> u64 {
        self.cleared.load(Ordering::Relaxed)
    }

    /// The parts of an extent that may be written and whose bits are clear.
    fn clear_bits(&self, block: usize, extent: Extent) -> impl Iterator<Item = Extent> {
        let parts = self.memory.writable_parts(block, extent.offset..extent.offset + extent.length);
        let pages = parts.map(|part| PageRun::of(part.start, part.end - part.start));
        pages.flat_map(move |pages| self.bitmaps[block].runs(pages, false)).map(move |run| Extent {
            offset: run.first * PAGE_BYTES,
            length: run.count * PAGE_BYTES,
            ..extent
        })
    }
}

// SAFETY: it asks for no requests.
unsafe impl Stage for Clear<'_> {
    type Pending = ();

    fn start<'a>(&'a self, chunk: &Chunk, buffer: *mut u8, _: &mut Vec<Request<'a>>) -> Result<()> {
        let extents: Vec<Extent> =
            chunk.extents.iter().flat_map(|extent| self.clear_bits(chunk.block, *extent)).collect();
        let Some(first) = extents.first() else { return Ok(()) };
        let chunk = Chunk { block: chunk.block, offset: first.offset, extents };
        // SAFETY: the buffer holds a whole chunk, and nothing is in flight on it.
        let dirty = unsafe { gather(self.memory, &chunk, Gaps::Unknown, buffer) }?.pages;
        if dirty.is_empty() {
            return Ok(());
        }
        let piece = |run: &PageRun| Piece {
            offset: run.first * PAGE_BYTES,
            length: to_usize(run.count * PAGE_BYTES),
            buffer_offset: 0,
        };
        let pieces: Vec<Piece> = dirty.iter().map(piece).collect();
        self.control.note_writing();
        // SAFETY: no run is longer than a chunk, so all lie within the zeros, which nobody writes to.
        unsafe { self.memory.write(chunk.block, &pieces, self.zeros.as_ptr()) }?;
        let pages: u64 = dirty.iter().map(|run| run.count).sum();
        self.cleared.fetch_add(pages * PAGE_BYTES, Ordering::Relaxed);
        Ok(())
    }

    fn finish(&self, (): (), _buffer: *mut u8) -> Result<()> {
        Ok(())
    }
}
