//! A chunk's bytes out of guest memory, and which of its pages are not zero.

use std::collections::BTreeMap;

use super::chunks::Chunk;
use super::{Content, JOINED_ZERO_PAGES, to_usize};
use crate::bitmap::PageRun;
use crate::memory::{Extent, Memory, Piece};
use crate::{PAGE_BYTES, Result, scan};

/// What a chunk of guest memory holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Data {
    /// Runs of pages that are not zero, ascending.
    pub pages: Vec<PageRun>,
    /// The same with short runs of zero pages between them: what is worth a request each.
    pub requests: Vec<PageRun>,
}

/// A chunk with more runs of zero pages among its data than that is not dense.
const FEW_ZERO_RUNS: usize = 16;

impl Data {
    /// Whether few zero pages are strewn among the others. Long runs of them, which no request writes, do not count.
    pub fn is_dense(&self) -> bool {
        self.pages.len() <= self.requests.len() + FEW_ZERO_RUNS
    }
}

/// Reads the chunk's extents to their places in `buffer` and says which pages are not zero. Gaps that may be written along
/// with their neighbours are zero in the buffer; all others are undefined there.
///
/// # Safety
/// `buffer` must be valid for writes of a whole chunk, and nobody else may access it meanwhile.
pub(super) unsafe fn gather(
    memory: &Memory,
    chunk: &Chunk,
    content: Content,
    buffer: *mut u8,
) -> Result<Data> {
    // SAFETY: the caller's promise.
    unsafe { read_extents(memory, chunk, buffer) }?;
    for pair in chunk.extents.windows(2).filter(|pair| content.may_be_written(&pair[0], &pair[1])) {
        let gap = chunk.piece(pair[0].bytes().end..pair[1].offset);
        // SAFETY: the gap lies between two extents of the chunk, hence within the buffer.
        unsafe { std::ptr::write_bytes(buffer.wrapping_add(gap.buffer_offset), 0, gap.length) };
    }
    // SAFETY: the extents were just read to the buffer, which nobody else accesses.
    Ok(unsafe { find_data(chunk, content, buffer) })
}

impl Content {
    /// Whether the bytes between two extents, if there are any, may be written along with them.
    fn may_be_written(self, one: &Extent, next: &Extent) -> bool {
        let gap_bytes = next.offset - one.bytes().end;
        gap_bytes == 0 || (self == Self::AllData && is_joined(gap_bytes))
    }
}

/// Finds the pages that are not zero in the chunk's extents, whose bytes begin at `base`.
///
/// # Safety
/// The bytes of every extent, from `base` on as far as the extent is from the start of the chunk, must be readable, and
/// nobody may write to them meanwhile.
pub(super) unsafe fn find_data(chunk: &Chunk, content: Content, base: *const u8) -> Data {
    let mut data = Data::default();
    for stretch in chunk.extents.chunk_by(|one, next| content.may_be_written(one, next)) {
        let first = data.pages.len();
        for extent in stretch {
            let start = base.wrapping_add(chunk.place(extent.offset));
            // SAFETY: the caller vouches for the bytes of the extent.
            let bytes = unsafe { std::slice::from_raw_parts(start, to_usize(extent.length)) };
            scan::nonzero_runs(bytes, extent.offset / PAGE_BYTES, |run| {
                match data.pages[first..].last_mut() {
                    Some(last) if last.end() == run.first => last.count += run.count,
                    _ => data.pages.push(run),
                }
            });
        }
        data.requests.extend(join(&data.pages[first..]));
    }
    data
}

/// Runs of pages, ascending, with short gaps between them filled.
pub(super) fn join(runs: &[PageRun]) -> impl Iterator<Item = PageRun> {
    let is_near = |one: &PageRun, next: &PageRun| is_joined(next.bytes().start - one.bytes().end);
    let whole = |runs: &[PageRun]| {
        let (first, end) = (runs[0].first, runs[runs.len() - 1].end());
        PageRun { first, count: end - first }
    };
    runs.chunk_by(is_near).map(whole)
}

fn is_joined(gap_bytes: u64) -> bool {
    gap_bytes <= JOINED_ZERO_PAGES * PAGE_BYTES
}

/// Reads the chunk's extents, with one call for each source.
///
/// # Safety
/// As for [`gather`].
pub(super) unsafe fn read_extents(memory: &Memory, chunk: &Chunk, buffer: *mut u8) -> Result<()> {
    let mut pieces: BTreeMap<u32, Vec<Piece>> = BTreeMap::new();
    for extent in &chunk.extents {
        pieces.entry(extent.source).or_default().push(chunk.piece(extent.bytes()));
    }
    for (source, pieces) in pieces {
        // SAFETY: every piece lies within the chunk, for which the caller vouches.
        unsafe { memory.read(source, &pieces, buffer) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn runs_are_joined_across_short_gaps_only() {
        let runs = [run(0, 2), run(18, 1), run(36, 1), run(40, 4)];
        assert_eq!(join(&runs).collect::<Vec<_>>(), [run(0, 19), run(36, 8)]);
    }

    #[test]
    fn strewn_zero_pages_make_a_chunk_less_dense_and_long_runs_of_them_do_not() {
        let is_dense = |step: u64, count| {
            let pages: Vec<PageRun> = (0..count).map(|number| run(number * step, 2)).collect();
            Data { requests: join(&pages).collect(), pages }.is_dense()
        };
        assert!(is_dense(3, 17) && !is_dense(3, 18) && is_dense(40, 100));
    }

    /// Pages 0 to 3 and 6 to 9 are planned; 1, 3 and 7 hold data.
    #[test]
    fn unknown_gaps_are_never_written() {
        let mut bytes = vec![0_u8; 10 * 4096];
        for page in [1, 3, 7] {
            bytes[page * 4096 + 5] = 1;
        }
        let extent =
            |first, count| Extent { offset: first * PAGE_BYTES, length: count * PAGE_BYTES, source: 0 };
        let chunk = Chunk { block: 0, offset: 0, extents: vec![extent(0, 4), extent(6, 4)] };
        // SAFETY: the bytes are a local array.
        let zero = unsafe { find_data(&chunk, Content::AllData, bytes.as_ptr()) };
        assert_eq!(zero.pages, [run(1, 1), run(3, 1), run(7, 1)]);
        assert_eq!(zero.requests, [run(1, 7)]);
        // SAFETY: as above.
        let unknown = unsafe { find_data(&chunk, Content::SomeData, bytes.as_ptr()) };
        assert_eq!(unknown.pages, zero.pages);
        assert_eq!(unknown.requests, [run(1, 3), run(7, 1)]);
    }
}
