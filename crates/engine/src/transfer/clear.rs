//! Making guest memory read zero where the image has no page.

use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::{Chunk, ChunkQueue, Seat};
use super::read::read_data;
use super::{Control, Plan, Range, threads, to_usize};
use crate::bitmap::{PageBitmap, PageRun};
use crate::memory::{Extent, Memory, Piece};
use crate::pool::Pool;
use crate::{PAGE_BYTES, Result};

/// Bytes that are looked at in one go.
const CHUNK_BYTES: u64 = 1 << 20;

/// Makes every page whose bit is clear read zero, whatever the memory held before; returns the bytes that held
/// something else. Pages that are zero already are left alone: whoever set them aside wants them there, and holes
/// are to stay holes. Memory that is mapped for reading only is left alone too.
///
/// # Errors
/// `Usage` if the bitmaps are not those of the blocks, `Cancelled`, or whatever the memory said.
pub fn clear(memory: &Memory, bitmaps: &[PageBitmap], threads: usize, control: &Control) -> Result<u64> {
    let clearing = Clearing::new(memory, bitmaps)?;
    threads::run(threads, control, &|team| clearing.work(team))?;
    Ok(clearing.cleared_bytes())
}

/// What several threads clear together.
pub(super) struct Clearing<'a> {
    memory: &'a Memory,
    bitmaps: &'a [PageBitmap],
    chunks: ChunkQueue,
    cleared: AtomicU64,
}

impl<'a> Clearing<'a> {
    /// Finds what may not be zero; changes nothing.
    pub fn new(memory: &'a Memory, bitmaps: &'a [PageBitmap]) -> Result<Self> {
        super::check_bitmaps(memory, bitmaps)?;
        let mut ranges = Vec::new();
        for block in 0..bitmaps.len() {
            for Extent { offset, length, source } in memory.scan(block)? {
                let parts = memory.writable_parts(block, offset..offset + length);
                ranges.extend(parts.map(|part| Range {
                    block,
                    offset: part.start,
                    length: part.end - part.start,
                    source,
                }));
            }
        }
        let chunks = ChunkQueue::new(Plan { chunk_bytes: CHUNK_BYTES, channels: vec![ranges] });
        Ok(Self { memory, bitmaps, chunks, cleared: AtomicU64::new(0) })
    }

    /// Clears one chunk after the other until none is left; several threads share the work.
    pub fn work(&self, team: &threads::Team<'_>) -> Result<()> {
        let pool = Pool::new(1, to_usize(CHUNK_BYTES))?;
        let zeros = vec![0; to_usize(CHUNK_BYTES)];
        let mut seat = Seat::default();
        while let Some(chunk) = self.chunks.next(&mut seat) {
            team.check()?;
            self.clear_chunk(&chunk, &pool, &zeros, team.control())?;
        }
        Ok(())
    }

    /// Bytes that held something else.
    pub fn cleared_bytes(&self) -> u64 {
        self.cleared.load(Ordering::Relaxed)
    }

    fn clear_chunk(&self, chunk: &Chunk, pool: &Pool, zeros: &[u8], control: &Control) -> Result<()> {
        let ranges: Vec<Range> = chunk.ranges.iter().flat_map(|range| self.clear_bits(range)).collect();
        let Some(first) = ranges.first() else { return Ok(()) };
        let chunk = Chunk { block: chunk.block, offset: first.offset, ranges };
        // SAFETY: the slot holds a whole chunk and belongs to this thread alone.
        let dirty = unsafe { read_data(self.memory, &chunk, pool.slot(0)) }?;
        let pieces: Vec<Piece> = dirty
            .iter()
            .map(|run| Piece {
                offset: run.first * PAGE_BYTES,
                length: to_usize(run.count * PAGE_BYTES),
                buffer_offset: 0,
            })
            .collect();
        if !pieces.is_empty() {
            control.note_writing();
        }
        // SAFETY: no run is longer than the chunk, so all lie within the zeros, which nobody writes to.
        unsafe { self.memory.write(chunk.block, &pieces, zeros.as_ptr()) }?;
        let pages: u64 = dirty.iter().map(|run| run.count).sum();
        self.cleared.fetch_add(pages * PAGE_BYTES, Ordering::Relaxed);
        Ok(())
    }

    /// The parts of the range whose bits are clear.
    fn clear_bits(&self, range: &Range) -> impl Iterator<Item = Range> {
        let range = *range;
        let pages = PageRun { first: range.offset / PAGE_BYTES, count: range.length / PAGE_BYTES };
        self.bitmaps[range.block].runs(pages, false).map(move |run| Range {
            offset: run.first * PAGE_BYTES,
            length: run.count * PAGE_BYTES,
            ..range
        })
    }
}
