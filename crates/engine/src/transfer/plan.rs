//! What a transfer is told to do: which bytes of each block, and where one channel's part ends and the next one's begins.

use std::ops::Range;

use super::CHUNK_BYTES;
use crate::memory::{Extent, Memory};
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

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
        if blocks.len() != memory.blocks().len() {
            return usage(format!("{} plans for {} RAM blocks", blocks.len(), memory.blocks().len()));
        }
        let splits = blocks.first().map_or(0, |block| block.splits.len());
        for (index, (block, &length)) in blocks.iter().zip(memory.blocks()).enumerate() {
            check_extents(index, &block.extents, length, memory, sources)?;
            if block.splits.len() != splits {
                return usage(format!("RAM block {index} is split for another number of channels"));
            }
            check_splits(index, &block.splits, length, chunk_bytes)?;
        }
        Ok(Self { chunk_bytes, channels: splits + 1, blocks, gaps })
    }

    /// All that `memory` may hold, for one channel.
    ///
    /// # Errors
    /// As [`Memory::scan`].
    pub(super) fn of_all(memory: &Memory, chunk_bytes: u64) -> Result<Self> {
        let scan = |block| Ok(BlockPlan { extents: memory.scan(block)?, splits: Vec::new() });
        let blocks = (0..memory.blocks().len()).map(scan).collect::<Result<_>>()?;
        Self::new(memory, chunk_bytes, blocks, Gaps::Zero, Sources::Used)
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

/// # Errors
/// `Usage` for a size that is no power of two within [`CHUNK_BYTES`].
pub(super) fn check_chunk_bytes(chunk_bytes: u64) -> Result<()> {
    if chunk_bytes.is_power_of_two() && CHUNK_BYTES.contains(&chunk_bytes) {
        return Ok(());
    }
    usage(format!("chunks of {chunk_bytes} bytes are not supported"))
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
        let end = extent.offset.checked_add(extent.length).filter(|end| *end <= length);
        let is_whole = extent.length > 0 && aligned(extent.offset) && aligned(extent.length);
        let has_source = sources == Sources::Ignored || memory.source_block(extent.source) == Some(block);
        match end {
            Some(end) if is_whole && has_source && extent.offset >= last_end => last_end = end,
            _ => return usage(format!("RAM block {block} of {length} bytes has a bad extent: {extent:?}")),
        }
    }
    Ok(())
}

fn check_splits(block: usize, splits: &[u64], length: u64, chunk_bytes: u64) -> Result<()> {
    let is_on_grid = |split: &u64| split.is_multiple_of(chunk_bytes) || *split >= length;
    if splits.is_sorted() && splits.iter().all(is_on_grid) {
        return Ok(());
    }
    usage(format!("RAM block {block} is split within a chunk, or not in ascending order"))
}

fn usage<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Usage, message))
}
