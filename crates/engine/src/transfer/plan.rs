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

/// What the extents of a plan are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// All data, with its sources. The bytes between read zero: a save may write short gaps along with their neighbours.
    AllData,
    /// Some data, with its sources. Nothing is known of the bytes between, which are left alone.
    SomeData,
    /// Places whose data is elsewhere; their sources are ignored, and the bytes between are left alone.
    Places,
}

/// A plan whose every number was checked.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Largest request, in bytes.
    pub(super) chunk_bytes: u64,
    /// Number of channels, at least 1.
    pub(super) channels: usize,
    pub(super) blocks: Vec<BlockPlan>,
    pub(super) content: Content,
}

impl Plan {
    /// A plan for `memory` in chunks of at most `chunk_bytes`, one [`BlockPlan`] for each block.
    ///
    /// # Errors
    /// `Usage`, naming the block and the number.
    pub fn new(memory: &Memory, chunk_bytes: u64, blocks: Vec<BlockPlan>, content: Content) -> Result<Self> {
        check_chunk_bytes(chunk_bytes)?;
        let (plans, wanted) = (blocks.len(), memory.blocks().len());
        require(plans == wanted, || format!("{plans} plans for {wanted} RAM blocks"))?;
        let splits = blocks.first().map_or(0, |block| block.splits.len());
        for (index, (block, &length)) in blocks.iter().zip(memory.blocks()).enumerate() {
            let is_source = |source| content == Content::Places || memory.source_block(source) == Some(index);
            let mut last_end = 0;
            for extent in &block.extents {
                let is_whole =
                    [extent.offset, extent.length].iter().all(|value| value.is_multiple_of(PAGE_BYTES));
                let is_behind_last = extent.length > 0 && extent.offset >= last_end;
                last_end = extent.offset.saturating_add(extent.length);
                require(
                    is_whole && is_behind_last && last_end <= length && is_source(extent.source),
                    || format!("RAM block {index} of {length} bytes has a bad extent: {extent:?}"),
                )?;
            }
            let is_split_alike = block.splits.len() == splits;
            require(is_split_alike, || format!("RAM block {index} is split for another number of channels"))?;
            let is_on_grid = |split: &u64| split.is_multiple_of(chunk_bytes) || *split >= length;
            require(block.splits.is_sorted() && block.splits.iter().all(is_on_grid), || {
                format!("RAM block {index} is split within a chunk, or not in ascending order")
            })?;
        }
        Ok(Self { chunk_bytes, channels: splits + 1, blocks, content })
    }

    /// Bytes in all extents.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.blocks.iter().flat_map(|block| &block.extents).map(|extent| extent.length).sum()
    }

    /// The part of a block that a channel has.
    pub(super) fn part(&self, block: usize, channel: usize) -> Range<u64> {
        let splits = &self.blocks[block].splits;
        let start = channel.checked_sub(1).map_or(0, |before| splits[before]);
        start..splits.get(channel).copied().unwrap_or(u64::MAX)
    }
}

/// Those of `extents`, ascending, that do not end at or before `start`.
pub(super) fn not_before(extents: &[Extent], start: u64) -> &[Extent] {
    &extents[extents.partition_point(|extent| extent.bytes().end <= start)..]
}

/// The parts within `bytes` of `extents`, ascending, none of which ends before.
pub(super) fn clipped(extents: &[Extent], bytes: Range<u64>) -> impl Iterator<Item = Extent> {
    extents.iter().map_while(move |extent| {
        let (offset, end) = (extent.offset.max(bytes.start), extent.bytes().end.min(bytes.end));
        (offset < end).then(|| Extent { offset, length: end - offset, ..*extent })
    })
}

/// The parts within `bytes` of `extents`, ascending.
pub(super) fn within(extents: &[Extent], bytes: Range<u64>) -> impl Iterator<Item = Extent> {
    clipped(not_before(extents, bytes.start), bytes)
}

/// # Errors
/// `Usage` for a size that is no power of two within [`CHUNK_BYTES`].
pub(super) fn check_chunk_bytes(chunk_bytes: u64) -> Result<()> {
    let is_possible = chunk_bytes.is_power_of_two() && CHUNK_BYTES.contains(&chunk_bytes);
    require(is_possible, || format!("chunks of {chunk_bytes} bytes are not supported"))
}
