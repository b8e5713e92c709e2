//! A plan's channels, cut into chunks for the threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::plan::{BlockPlan, Plan, clipped, not_before};
use super::to_usize;
use crate::memory::{Extent, Piece};

/// The planned extents of one cell of the chunk grid: what one buffer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Index of the RAM block.
    pub block: usize,
    /// First byte of the first extent, from the start of the block.
    pub offset: u64,
    /// The extents, ascending, none crossing the cell.
    pub extents: Vec<Extent>,
}

impl Chunk {
    /// Bytes in its extents.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// Its bytes from the first extent to the last, gaps included.
    pub(super) fn span(&self) -> Range<u64> {
        self.offset..self.extents.last().map_or(self.offset, |extent| extent.bytes().end)
    }

    /// Where the block's byte at `offset` is in a buffer that holds this chunk.
    pub(super) fn place(&self, offset: u64) -> usize {
        to_usize(offset - self.offset)
    }

    /// The same of some of the chunk's bytes.
    pub(super) fn piece(&self, bytes: Range<u64>) -> Piece {
        let (offset, length) = (bytes.start, to_usize(bytes.end - bytes.start));
        Piece { offset, length, buffer_offset: self.place(offset) }
    }
}

/// What is left to do of every channel. A thread stays with a channel, whose chunks lie next to each other in memory and
/// in the file: taking turns among many channels tears both into pieces. Threads without a channel of their own help others,
/// so that none runs out of work early.
#[derive(Debug)]
pub struct ChunkQueue<'a> {
    plan: &'a Plan,
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
pub struct Turn(Option<usize>);

/// Where a channel's next chunk begins.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    channel: usize,
    block: usize,
    /// The block's bytes before this one are done.
    offset: u64,
}

impl<'a> ChunkQueue<'a> {
    /// All channels of `plan`.
    #[must_use]
    pub fn new(plan: &'a Plan) -> Self {
        let cursor = |channel| Cursor { channel, block: 0, offset: 0 };
        let channels = Channels { cursors: (0..plan.channels).map(cursor).collect(), untouched: 0 };
        Self { plan, channels: Mutex::new(channels) }
    }

    /// The next chunk for the thread whose turn it is, or `None` when all are done.
    pub fn next(&self, turn: &mut Turn) -> Option<Chunk> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let own = turn.0.and_then(|channel| channels.cursors[channel].next_chunk(self.plan));
            if own.is_some() {
                return own;
            }
            if channels.untouched == channels.cursors.len() {
                return channels.cursors.iter_mut().find_map(|cursor| cursor.next_chunk(self.plan));
            }
            turn.0 = Some(channels.untouched);
            channels.untouched += 1;
        }
    }
}

impl Cursor {
    fn next_chunk(&mut self, plan: &Plan) -> Option<Chunk> {
        while let Some(BlockPlan { extents, .. }) = plan.blocks.get(self.block) {
            let part = plan.part(self.block, self.channel);
            let start = self.offset.max(part.start);
            let left = not_before(extents, start);
            let first = left.first().map(|extent| extent.offset.max(start));
            if let Some(offset) = first.filter(|offset| *offset < part.end) {
                // Of the chunk grid: a channel's part ends there, or where the block does.
                self.offset = (offset / plan.chunk_bytes + 1) * plan.chunk_bytes;
                let extents = clipped(left, offset..self.offset).collect();
                return Some(Chunk { block: self.block, offset, extents });
            }
            *self = Self { block: self.block + 1, offset: 0, ..*self };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_BYTES;
    use crate::memory::{Backing, FileRange, Memory, Region};
    use crate::transfer::{BlockPlan, Content};
    use proptest::prelude::*;
    use std::sync::Arc;

    const CHUNK: u64 = 64 << 10;
    const BLOCK: u64 = 1 << 30;

    /// Two blocks of one empty file.
    fn memory() -> Memory {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let region = |block| Region {
            block,
            offset: 0,
            length: BLOCK,
            backing: Backing::Shared {
                file: FileRange { file: Arc::clone(&file), path: None, offset: 0 },
                process: None,
            },
            page_bytes: PAGE_BYTES,
            writable: true,
        };
        Memory::new(vec![BLOCK; 2], vec![region(0), region(1)]).unwrap()
    }

    proptest! {
        #[test]
        fn chunks_cover_every_extent_once_and_neither_cells_nor_channels_share_any(
            blocks in prop::collection::vec(
                (prop::collection::vec((0_u64..40, 1_u64..60), 0..40), prop::collection::vec(0_u64..80, 3..=3)), 2..=2,
            ),
        ) {
            let plan = |(gaps, mut cells): (Vec<(u64, u64)>, Vec<u64>)| {
                let mut page = 0;
                let extents = gaps.into_iter().map(|(gap, count)| {
                    let extent = Extent { offset: (page + gap) * PAGE_BYTES, length: count * PAGE_BYTES, source: 0 };
                    page += gap + count;
                    extent
                }).collect();
                cells.sort_unstable();
                BlockPlan { extents, splits: cells.into_iter().map(|cell| cell * CHUNK).collect() }
            };
            let blocks: Vec<BlockPlan> = blocks.into_iter().map(plan).collect();
            let wanted: Vec<(usize, u64)> = blocks.iter().enumerate().flat_map(|(block, plan)| pages(block, &plan.extents)).collect();
            let plan = Plan::new(&memory(), CHUNK, blocks, Content::Places).unwrap();
            let queue = ChunkQueue::new(&plan);
            let mut found = Vec::new();
            let mut cells = std::collections::HashSet::new();
            let mut turns = [Turn::default(), Turn::default(), Turn::default()];
            let mut number = 0;
            while let Some(chunk) = queue.next(&mut turns[number % 3]) {
                number += 1;
                let cell = chunk.offset / CHUNK;
                prop_assert!(cells.insert((chunk.block, cell)), "a cell came twice");
                for extent in &chunk.extents {
                    prop_assert!(extent.offset / CHUNK == cell && (extent.offset + extent.length - 1) / CHUNK == cell);
                }
                prop_assert_eq!(chunk.extents[0].offset, chunk.offset);
                found.extend(pages(chunk.block, &chunk.extents));
            }
            found.sort_unstable();
            prop_assert_eq!(found, wanted);
        }
    }

    fn pages(block: usize, extents: &[Extent]) -> Vec<(usize, u64)> {
        extents
            .iter()
            .flat_map(|extent| extent.offset / PAGE_BYTES..(extent.offset + extent.length) / PAGE_BYTES)
            .map(|page| (block, page))
            .collect()
    }

    #[test]
    fn plans_that_could_lose_data_are_refused() {
        let memory = memory();
        let extent = |offset, length| Extent { offset, length, source: 0 };
        let with = |extents: Vec<Extent>, splits: Vec<u64>| {
            let other = BlockPlan { extents: Vec::new(), splits: vec![BLOCK; splits.len()] };
            let blocks = vec![BlockPlan { extents, splits }, other];
            Plan::new(&memory, CHUNK, blocks, Content::AllData).map(drop)
        };
        assert!(
            with(vec![extent(0, 4096), extent(4096, 4096)], vec![CHUNK, CHUNK]).is_err(),
            "no such source"
        );
        let read = |extents| with(extents, vec![]).map_err(|error| error.kind);
        for bad in [
            vec![extent(0, 0)],
            vec![extent(1, 4096)],
            vec![extent(0, 4095)],
            vec![extent(BLOCK, 4096)],
            vec![extent(u64::MAX - 4095, 4096)],
            vec![Extent { source: 3, ..extent(0, 4096) }],
        ] {
            assert_eq!(read(bad), Err(crate::ErrorKind::Usage));
        }
        let file = |offset, length| Extent { source: 1, ..extent(offset, length) };
        assert!(with(vec![file(0, 4096), file(4096, 4096)], vec![CHUNK, CHUNK, BLOCK]).is_ok());
        assert!(with(vec![file(4096, 4096), file(0, 4096)], vec![]).is_err(), "descending");
        assert!(with(vec![file(0, 8192), file(4096, 4096)], vec![]).is_err(), "overlapping");
        assert!(with(vec![], vec![4096]).is_err(), "two channels share a cell");
        assert!(with(vec![], vec![2 * CHUNK, CHUNK]).is_err(), "descending splits");
        let uneven = vec![BlockPlan::default(), BlockPlan { splits: vec![CHUNK], ..BlockPlan::default() }];
        assert!(Plan::new(&memory, CHUNK, uneven, Content::AllData).is_err());
        let blocks = || vec![BlockPlan::default(); 2];
        assert!(Plan::new(&memory, 12345, blocks(), Content::AllData).is_err());
        assert!(Plan::new(&memory, CHUNK, vec![BlockPlan::default()], Content::AllData).is_err());
    }
}
