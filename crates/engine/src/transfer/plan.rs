//! What a transfer is told to do: which bytes of each block, and where one channel's part ends and the next one's begins.

use std::ops::Range;

use super::CHUNK_BYTES;
use crate::error::require;
use crate::memory::{Extent, Memory};
use crate::{PAGE_BYTES, Result};

/// The planned bytes of one block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockPlan {
    /// Page-aligned, ascending and disjoint.
    pub extents: Vec<Extent>,
    /// Where a channel's part of the block ends and the next one's begins, from the start of the block: ascending, one less
    /// than there are channels. All but those at the end of the block are multiples of the chunk size, so that no cell of
    /// the chunk grid is shared by two channels: zero pages between a cell's data are rewritten.
    pub splits: Vec<u64>,
}

/// What is known of a block's bytes that are in none of its extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gaps {
    /// They read zero: a save may write short ones along with their neighbours.
    Zero,
    /// Nothing: they are left alone.
    Unknown,
}

/// Whether a transfer reads the extents' sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// A save does.
    Used,
    /// A restore does not.
    Ignored,
}

/// A plan whose every number was checked.
#[derive(Debug, Clone)]
pub struct Plan {
    chunk_bytes: u64,
    channels: usize,
    blocks: Vec<BlockPlan>,
    gaps: Gaps,
}

impl Plan {
    /// A plan for `memory` in chunks of at most `chunk_bytes`, one [`BlockPlan`] for each block.
    ///
    /// # Errors
    /// `Usage`, naming the block and the number.
    pub fn new(
        memory: &Memory,
        chunk_bytes: u64,
        blocks: Vec<BlockPlan>,
        gaps: Gaps,
        sources: Sources,
    ) -> Result<Self> {
        check_chunk_bytes(chunk_bytes)?;
        let (plans, wanted) = (blocks.len(), memory.blocks().len());
        require(plans == wanted, || format!("{plans} plans for {wanted} RAM blocks"))?;
        let splits = blocks.first().map_or(0, |block| block.splits.len());
        for (index, (block, &length)) in blocks.iter().zip(memory.blocks()).enumerate() {
            check_extents(index, &block.extents, length, memory, sources)?;
            let is_split_alike = block.splits.len() == splits;
            require(is_split_alike, || format!("RAM block {index} is split for another number of channels"))?;
            let is_on_grid = |split: &u64| split.is_multiple_of(chunk_bytes) || *split >= length;
            require(block.splits.is_sorted() && block.splits.iter().all(is_on_grid), || {
                format!("RAM block {index} is split within a chunk, or not in ascending order")
            })?;
        }
        Ok(Self { chunk_bytes, channels: splits + 1, blocks, gaps })
    }

    /// Largest request, in bytes.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Number of channels, at least 1.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// What is known of the bytes that are not planned.
    #[must_use]
    pub fn gaps(&self) -> Gaps {
        self.gaps
    }

    /// Bytes in all extents.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.blocks.iter().flat_map(|block| &block.extents).map(|extent| extent.length).sum()
    }

    /// The planned extents of each block.
    pub(super) fn blocks(&self) -> &[BlockPlan] {
        &self.blocks
    }

    /// The part of a block that a channel has.
    pub(super) fn part(&self, block: usize, channel: usize) -> Range<u64> {
        let splits = &self.blocks[block].splits;
        let start = channel.checked_sub(1).map_or(0, |before| splits[before]);
        start..splits.get(channel).copied().unwrap_or(u64::MAX)
    }
}

/// The parts of `extents`, ascending, that lie within `bytes`.
pub(super) fn within(extents: &[Extent], bytes: Range<u64>) -> impl Iterator<Item = Extent> {
    let first = extents.partition_point(|extent| extent.bytes().end <= bytes.start);
    extents[first..].iter().map_while(move |extent| {
        let (offset, end) = (extent.offset.max(bytes.start), extent.bytes().end.min(bytes.end));
        (offset < end).then(|| Extent { offset, length: end - offset, ..*extent })
    })
}

/// # Errors
/// `Usage` for a size that is no power of two within [`CHUNK_BYTES`].
pub(super) fn check_chunk_bytes(chunk_bytes: u64) -> Result<()> {
    let is_possible = chunk_bytes.is_power_of_two() && CHUNK_BYTES.contains(&chunk_bytes);
    require(is_possible, || format!("chunks of {chunk_bytes} bytes are not supported"))
}

fn check_extents(
    block: usize,
    extents: &[Extent],
    length: u64,
    memory: &Memory,
    sources: Sources,
) -> Result<()> {
    let aligned = |value: u64| value.is_multiple_of(PAGE_BYTES);
    let mut last_end = 0;
    for extent in extents {
        let is_whole = extent.length > 0 && aligned(extent.offset) && aligned(extent.length);
        let has_source = sources == Sources::Ignored || memory.source_block(extent.source) == Some(block);
        let end = extent.offset.saturating_add(extent.length);
        require(
            is_whole && has_source && (last_end..=length).contains(&extent.offset) && end <= length,
            || format!("RAM block {block} of {length} bytes has a bad extent: {extent:?}"),
        )?;
        last_end = end;
    }
    Ok(())
}
