//! Making guest memory read zero where the image has no page.

use std::sync::atomic::{AtomicU64, Ordering};

use super::chunks::{Chunk, ChunkQueue};
use super::gather::gather;
use super::{BlockPlan, Content, Control, Plan, check_bitmaps, threads, to_usize, writable};
use crate::Result;
use crate::bitmap::{PageBitmap, PageRun};
use crate::memory::Memory;
use crate::pool::Pool;

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
    check_bitmaps(memory, bitmaps)?;
    memory.prepare_to_write()?;
    let plan = plan(memory, MAX_CHUNK_BYTES)?;
    let chunks = ChunkQueue::new(&plan);
    let clearing = Clear::new(memory, bitmaps, control);
    threads::run(threads, control, &|team| {
        let pool = Pool::new(1, to_usize(MAX_CHUNK_BYTES))?;
        team.wait_for_all()?;
        team.each_chunk(&chunks, |chunk| clearing.clear(chunk, pool.slot(0)))
    })?;
    memory.check_not_cut()?;
    Ok(clearing.cleared.into_inner())
}

/// All that may not be zero, in chunks for buffers of `buffer_bytes`.
///
/// # Errors
/// As [`Memory::scan`].
pub(super) fn plan(memory: &Memory, buffer_bytes: u64) -> Result<Plan> {
    let scan = |block| Ok(BlockPlan { extents: memory.scan(block)?, splits: Vec::new() });
    let blocks = (0..memory.blocks().len()).map(scan).collect::<Result<_>>()?;
    Plan::new(memory, buffer_bytes.min(MAX_CHUNK_BYTES), blocks, Content::AllData)
}

/// What several threads clear together.
pub(super) struct Clear<'a> {
    memory: &'a Memory,
    bitmaps: &'a [PageBitmap],
    control: &'a Control,
    /// As many as the largest chunk has.
    zeros: Vec<u8>,
    /// Bytes that held something else.
    cleared: AtomicU64,
}

impl<'a> Clear<'a> {
    /// `bitmaps` are those of the blocks.
    pub fn new(memory: &'a Memory, bitmaps: &'a [PageBitmap], control: &'a Control) -> Self {
        let zeros = vec![0; to_usize(MAX_CHUNK_BYTES)];
        Self { memory, bitmaps, control, zeros, cleared: AtomicU64::new(0) }
    }

    /// Clears a chunk of a [`plan`]; `buffer` has room for it, and nothing else uses it.
    pub fn clear(&self, chunk: Chunk, buffer: *mut u8) -> Result<()> {
        let extents = writable(self.memory, self.bitmaps, &chunk, false).collect();
        let chunk = Chunk { extents, ..chunk };
        // SAFETY: the buffer holds a whole chunk and is used for nothing else.
        let dirty = unsafe { gather(self.memory, &chunk, Content::SomeData, buffer) }?.pages;
        if dirty.is_empty() {
            return Ok(());
        }
        let pieces: Vec<_> = dirty.iter().map(|run| chunk.piece(run.bytes())).collect();
        self.control.note_writing();
        // SAFETY: the zeros are as many as a chunk has bytes, and nobody writes to them.
        unsafe { self.memory.write(chunk.block, &pieces, self.zeros.as_ptr()) }?;
        self.cleared.fetch_add(dirty.iter().map(PageRun::length).sum(), Ordering::Relaxed);
        Ok(())
    }
}
