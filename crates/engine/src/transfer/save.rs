//! Guest memory to image: read a chunk, find its zero pages, write the rest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::chunks::{Chunk, ChunkQueue};
use super::gather::{Data, find_data, gather};
use super::pump::{Pump, Stage};
use super::requests::{Request, Target};
use super::{Buffers, Content, Control, Options, Plan, Saved, check_bitmaps, threads, to_usize};
use crate::Result;
use crate::bitmap::{PageBitmap, PageRun};
use crate::image::{ImageWriter, PageAreas, takes_small_segments};
use crate::io::Direction;
use crate::memory::{Copying, Memory, OwnPages};

/// A save that is ready to run.
#[derive(Debug)]
pub struct SaveJob<'a> {
    /// Guest memory, standing still.
    pub memory: &'a Memory,
    /// What to read, and on which channel.
    pub plan: &'a Plan,
    /// Where each block's pages go.
    pub areas: &'a PageAreas,
    /// For each block, which pages the image holds. The bits of planned pages are set or cleared, all others stay.
    pub bitmaps: &'a [PageBitmap],
    /// How to run.
    pub options: Options,
    /// Whether what could be written from where it is goes through a buffer all the same.
    pub copying: Copying,
    /// Pools that were made beforehand; those that are missing are made by the save.
    pub buffers: &'a Buffers,
}

impl SaveJob<'_> {
    /// Transfers everything. The file is set to the length of the page areas first, so that no write extends it; metadata,
    /// syncing and publishing are the caller's.
    ///
    /// # Errors
    /// `Usage` for areas or bitmaps that are not those of the blocks, `Cancelled`, or whatever the memory or the disk said.
    /// The image is incomplete then and is to be discarded.
    pub fn run(self, image: &ImageWriter, control: &Control) -> Result<Saved> {
        self.options.validate()?;
        self.areas.check_blocks(self.memory.blocks())?;
        check_bitmaps(self.memory, self.bitmaps)?;
        image.set_length(self.areas.end())?;
        image.begin_transfer()?;
        let chunks = ChunkQueue::new(self.plan);
        let slots = self.options.slots(self.plan.data_bytes(), self.plan.chunk_bytes);
        let glad = takes_small_segments(image.fd());
        let data = |block: usize| self.plan.blocks[block].extents.as_slice();
        let own_pages = OwnPages::new(self.memory, self.copying, glad, data)?;
        let is_dense = AtomicBool::new(true);
        let (written, copied) = Default::default();
        let stage = Save { job: &self, own_pages, is_dense, written, copied };
        let target = Target {
            io: image.io().as_ref(),
            options: self.options,
            direction: Direction::Write,
            file: image.fd(),
            path: image.path(),
            areas: self.areas,
        };
        threads::run(self.options.threads, control, &|team| {
            let pool = self.buffers.take(slots, to_usize(self.plan.chunk_bytes))?;
            Pump::new(team, &pool, &target)?.run(&stage, &chunks)
        })?;
        image.end_transfer()?;
        Ok(Saved { image_bytes: stage.written.into_inner(), copied_bytes: stage.copied.into_inner() })
    }
}

/// What the threads of a save share.
struct Save<'a> {
    job: &'a SaveJob<'a>,
    own_pages: OwnPages<'a>,
    /// Whether the latest chunk was dense: the next one is taken to be like it.
    is_dense: AtomicBool,
    /// Bytes of the image, and those of them that went through a buffer.
    written: AtomicU64,
    copied: AtomicU64,
}

impl Save<'_> {
    /// What the chunk holds, and the address of its first byte: in guest memory, or in `buffer`.
    fn look(&self, chunk: &Chunk, buffer: *mut u8) -> Result<(Data, *mut u8)> {
        let is_dense = self.is_dense.load(Ordering::Relaxed);
        if let Some(mapping) = self.own_pages.find(chunk.block, &chunk.span(), is_dense) {
            let address = mapping.address(chunk.offset);
            // Gaps are holes, which must not be touched: the guest's memory would grow.
            // SAFETY: the extents' pages are mapped and present, and the guest stands still; one that goes missing all the
            // same is replaced by zeros and becomes an error.
            let look = || unsafe { find_data(chunk, Content::SomeData, address) };
            return Ok((mapping.look(chunk.span(), &chunk.extents, look)?, address));
        }
        self.copied.fetch_add(chunk.data_bytes(), Ordering::Relaxed);
        // SAFETY: the buffer holds a whole chunk, and nothing is in flight on it.
        let data = unsafe { gather(self.job.memory, chunk, self.job.plan.content, buffer) }?;
        Ok((data, buffer))
    }
}

// SAFETY: requests are of the chunk's buffer, which is not touched after `start`, or of our mapping of guest memory, which is
// only read and lives as long as this.
unsafe impl Stage for Save<'_> {
    type Pending = ();

    fn start(&self, chunk: &Chunk, buffer: *mut u8, requests: &mut Vec<Request>) -> Result<()> {
        let (data, first) = self.look(chunk, buffer)?;
        self.is_dense.store(data.is_dense(), Ordering::Relaxed);
        let bitmap = &self.job.bitmaps[chunk.block];
        chunk.extents.iter().for_each(|extent| bitmap.clear(PageRun::of(extent.bytes())));
        data.pages.iter().for_each(|run| bitmap.set(*run));
        self.written.fetch_add(data.requests.iter().map(PageRun::length).sum(), Ordering::Relaxed);
        requests.extend(data.requests.into_iter().map(|pages| Request::within(chunk, pages, first)));
        Ok(())
    }
}
