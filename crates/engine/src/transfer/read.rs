//! A chunk's bytes out of guest memory, and which of its pages are not zero.

use super::plan::Chunk;
use super::{JOINED_ZERO_PAGES, to_usize};
use crate::bitmap::PageRun;
use crate::memory::{Memory, Piece};
use crate::{PAGE_BYTES, Result, scan};

/// Reads the chunk's ranges to their places in `buffer` and returns the runs of pages that are not zero, ascending.
/// Holes between them that are short enough to be written along are zero in the buffer, longer ones undefined.
///
/// # Safety
/// `buffer` must be valid for writes of a whole chunk, and nobody else may access it meanwhile.
pub(super) unsafe fn read_data(memory: &Memory, chunk: &Chunk, buffer: *mut u8) -> Result<Vec<PageRun>> {
    // SAFETY: the caller's promise.
    unsafe { read_ranges(memory, chunk, buffer) }?;
    let mut runs: Vec<PageRun> = Vec::new();
    let mut end_of_last = chunk.offset;
    for range in &chunk.ranges {
        // SAFETY: the hole lies between two ranges of the chunk, hence within the buffer.
        unsafe { clear_short_hole(buffer, end_of_last - chunk.offset, range.offset - chunk.offset) };
        end_of_last = range.offset + range.length;
        let start = to_usize(range.offset - chunk.offset);
        // SAFETY: the range lies within the buffer, nobody else accesses it, and reading it has filled these bytes.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.wrapping_add(start), to_usize(range.length)) };
        scan::nonzero_runs(bytes, range.offset / PAGE_BYTES, |run| match runs.last_mut() {
            Some(last) if last.first + last.count == run.first => last.count += run.count,
            _ => runs.push(run),
        });
    }
    Ok(runs)
}

/// Reads the chunk's ranges, with one call for each source.
///
/// # Safety
/// As for [`read_data`].
unsafe fn read_ranges(memory: &Memory, chunk: &Chunk, buffer: *mut u8) -> Result<()> {
    let mut sources: Vec<u32> = chunk.ranges.iter().map(|range| range.source).collect();
    sources.sort_unstable();
    sources.dedup();
    for source in sources {
        let pieces: Vec<Piece> = chunk
            .ranges
            .iter()
            .filter(|range| range.source == source)
            .map(|range| Piece {
                offset: range.offset,
                length: to_usize(range.length),
                buffer_offset: to_usize(range.offset - chunk.offset),
            })
            .collect();
        // SAFETY: every piece lies within the chunk, for which the caller vouches.
        unsafe { memory.read(source, &pieces, buffer) }?;
    }
    Ok(())
}

/// Zeroes a hole between two ranges if it is short enough to be written along with its neighbours.
///
/// # Safety
/// Bytes `start` to `end` of `buffer` must be valid for writes.
unsafe fn clear_short_hole(buffer: *mut u8, start: u64, end: u64) {
    if end - start <= JOINED_ZERO_PAGES * PAGE_BYTES {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(buffer.wrapping_add(to_usize(start)), 0, to_usize(end - start)) };
    }
}
