//! What a transfer is told to do, and how its channels are cut into chunks.

use std::sync::{Mutex, PoisonError};

use super::CHUNK_BYTES;
use crate::memory::Memory;
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

/// Bytes of a block that one source holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Index of the RAM block.
    pub block: usize,
    /// First byte, from the start of the block; page-aligned.
    pub offset: u64,
    /// Bytes, a multiple of the page size, not 0.
    pub length: u64,
    /// Where a save reads it, as [`Memory::scan`] said; a restore ignores it.
    pub source: u32,
}

/// Where a block's pages are in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// File offset of the block's page 0; page-aligned.
    pub pages_offset: u64,
    /// Length of the block in bytes; a multiple of the page size.
    pub length: u64,
}

/// Ranges for each channel, ascending within a channel. Chunks are cut where a multiple of `chunk_bytes` within a
/// block is crossed; two channels must not share such a cell, as zero pages between a cell's data are rewritten.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Largest request, in bytes: a power of two within [`CHUNK_BYTES`].
    pub chunk_bytes: u64,
    /// The ranges of every channel.
    pub channels: Vec<Vec<Range>>,
}

/// # Errors
/// `Usage` for a size that is no power of two within [`CHUNK_BYTES`].
pub(super) fn check_chunk_bytes(chunk_bytes: u64) -> Result<()> {
    if chunk_bytes.is_power_of_two() && CHUNK_BYTES.contains(&chunk_bytes) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("chunks of {chunk_bytes} bytes are not supported")))
}

/// Whether a transfer reads a plan's sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// A save does.
    Used,
    /// A restore does not.
    Ignored,
}

impl Plan {
    /// Checks every number that the transfer will rely on; the ranges' sources only if they are used.
    ///
    /// # Errors
    /// `Usage`, naming the channel and the number.
    pub fn validate(&self, places: &[Place], memory: &Memory, sources: Sources) -> Result<()> {
        let usage = |message: String| Err(Error::new(ErrorKind::Usage, message));
        check_chunk_bytes(self.chunk_bytes)?;
        if places.len() != memory.blocks().len() {
            return usage(format!("{} places for {} RAM blocks", places.len(), memory.blocks().len()));
        }
        for (index, (place, &length)) in places.iter().zip(memory.blocks()).enumerate() {
            if place.length > length || !aligned(place.length) || !aligned(place.pages_offset) {
                return usage(format!("RAM block {index} of {length} bytes has no fitting place: {place:?}"));
            }
            if place.pages_offset.checked_add(place.length).is_none_or(|end| end > i64::MAX as u64) {
                return usage(format!("RAM block {index} ends beyond the largest file: {place:?}"));
            }
        }
        for (channel, ranges) in self.channels.iter().enumerate() {
            let mut last = (0, 0);
            for range in ranges {
                let is_elsewhere = memory.source_block(range.source) != Some(range.block);
                let has_no_source = sources == Sources::Used && is_elsewhere;
                if !range.fits(places) || (range.block, range.offset) < last || has_no_source {
                    return usage(format!("channel {channel} has a range that does not fit: {range:?}"));
                }
                last = (range.block, range.offset + range.length);
            }
        }
        Ok(())
    }

    /// Bytes in all ranges.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.channels.iter().flatten().map(|range| range.length).sum()
    }
}

impl Range {
    fn fits(&self, places: &[Place]) -> bool {
        let end = self.offset.checked_add(self.length);
        let place = places.get(self.block);
        self.length > 0
            && aligned(self.offset)
            && aligned(self.length)
            && place.zip(end).is_some_and(|(place, end)| end <= place.length)
    }
}

fn aligned(value: u64) -> bool {
    value.is_multiple_of(PAGE_BYTES)
}

/// The ranges of one cell of the chunk grid: what one buffer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Index of the RAM block.
    pub block: usize,
    /// First byte of the first range, from the start of the block.
    pub offset: u64,
    /// The ranges, ascending, none crossing the cell.
    pub ranges: Vec<Range>,
}

impl Chunk {
    /// Bytes in its ranges.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.length).sum()
    }
}

/// What is left to do of every channel. A thread stays with a channel, whose chunks lie next to each other in memory and
/// in the file: taking turns among many channels tears both into pieces. Threads without a channel of their own help others,
/// so that none runs out of work early.
#[derive(Debug)]
pub struct ChunkQueue {
    chunk_bytes: u64,
    channels: Mutex<Channels>,
}

#[derive(Debug)]
struct Channels {
    cursors: Vec<Cursor>,
    /// The first channel that no thread has begun with.
    untouched: usize,
}

/// The channel that a thread is at; none at first.
#[derive(Debug, Default)]
pub struct Seat(Option<usize>);

/// What is left of a channel.
#[derive(Debug)]
struct Cursor {
    ranges: std::vec::IntoIter<Range>,
    rest: Option<Range>,
}

impl ChunkQueue {
    /// All channels of `plan`, which has been validated.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let cursors = plan.channels.into_iter().map(|ranges| {
            let mut ranges = ranges.into_iter();
            let rest = ranges.next();
            Cursor { ranges, rest }
        });
        let channels = Channels { cursors: cursors.collect(), untouched: 0 };
        Self { chunk_bytes: plan.chunk_bytes, channels: Mutex::new(channels) }
    }

    /// The next chunk for the thread in `seat`, or `None` when all are done.
    pub fn next(&self, seat: &mut Seat) -> Option<Chunk> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let own = seat.0.and_then(|channel| channels.cursors[channel].next_chunk(self.chunk_bytes));
            if own.is_some() {
                return own;
            }
            if channels.untouched == channels.cursors.len() {
                return channels.cursors.iter_mut().find_map(|cursor| cursor.next_chunk(self.chunk_bytes));
            }
            seat.0 = Some(channels.untouched);
            channels.untouched += 1;
        }
    }
}

impl Cursor {
    fn next_chunk(&mut self, chunk_bytes: u64) -> Option<Chunk> {
        let first = self.rest?;
        let cell_end = (first.offset / chunk_bytes + 1) * chunk_bytes;
        let mut chunk = Chunk { block: first.block, offset: first.offset, ranges: Vec::new() };
        while let Some(range) = self.rest {
            if range.block != chunk.block || range.offset >= cell_end {
                break;
            }
            let length = range.length.min(cell_end - range.offset);
            chunk.ranges.push(Range { length, ..range });
            self.rest = if length < range.length {
                Some(Range { offset: range.offset + length, length: range.length - length, ..range })
            } else {
                self.ranges.next()
            };
        }
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: u64 = 64 << 10;

    fn range(offset: u64, length: u64) -> Range {
        Range { block: 0, offset: offset * PAGE_BYTES, length: length * PAGE_BYTES, source: 0 }
    }

    proptest! {
        #[test]
        fn chunks_cover_every_range_once_and_cross_no_cell(
            channels in prop::collection::vec(prop::collection::vec((0_u64..40, 1_u64..60), 0..20), 1..6),
        ) {
            let mut page = 0;
            let channels: Vec<Vec<Range>> = channels
                .into_iter()
                .map(|gaps| {
                    gaps.into_iter()
                        .map(|(gap, length)| {
                            let made = range(page + gap, length);
                            page += gap + length;
                            made
                        })
                        .collect()
                })
                .collect();
            let mut wanted: Vec<u64> = pages(channels.iter().flatten());
            let queue = ChunkQueue::new(Plan { chunk_bytes: CHUNK, channels });
            let mut found = Vec::new();
            let mut seats = [Seat::default(), Seat::default(), Seat::default()];
            let mut turn = 0;
            while let Some(chunk) = queue.next(&mut seats[turn % 3]) {
                turn += 1;
                let cell = chunk.offset / CHUNK;
                for range in &chunk.ranges {
                    prop_assert!(range.offset / CHUNK == cell && (range.offset + range.length - 1) / CHUNK == cell);
                }
                found.extend(pages(chunk.ranges.iter()));
            }
            wanted.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, wanted);
        }
    }

    fn pages<'a>(ranges: impl Iterator<Item = &'a Range>) -> Vec<u64> {
        ranges
            .flat_map(|range| range.offset / PAGE_BYTES..(range.offset + range.length) / PAGE_BYTES)
            .collect()
    }
}
