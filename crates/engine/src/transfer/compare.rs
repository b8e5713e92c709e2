//! Memory that is mapped for reading only, held against the image that is to be restored.

use std::sync::OnceLock;

use super::chunks::{Chunk, ChunkQueue};
use super::gather::{join, read_extents};
use super::plan::within;
use super::pump::{Pump, Stage};
use super::requests::{Request, Target};
use super::{BlockPlan, Content, Control, Options, Plan, threads, to_usize};
use crate::bitmap::PageRun;
use crate::image::ImageReader;
use crate::io::Io;
use crate::memory::{Extent, Memory};
use crate::pool::Pool;
use crate::{PAGE, Result};

/// A comparison that is ready to run. Nothing can be restored into memory that is mapped for reading only, so it must hold what
/// the image says already.
#[derive(Debug)]
pub struct CompareJob<'a> {
    /// The image.
    pub image: &'a ImageReader,
    /// Guest memory.
    pub memory: &'a Memory,
    /// Largest request in bytes.
    pub chunk_bytes: u64,
    /// How to run.
    pub options: Options,
}

/// A page that is not what the image says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Index of the RAM block.
    pub block: usize,
    /// Its first byte, from the start of the block.
    pub offset: u64,
}

impl CompareJob<'_> {
    /// Compares all memory that is mapped for reading only; returns a difference, if there is one.
    ///
    /// # Errors
    /// `Usage` for an image that is not of these blocks, `HostUnsupported` if the engine cannot be set up, `ImageInvalid`
    /// where the image ends too early, `Cancelled`, or whatever the memory or the disk said.
    pub fn run(self, io: &dyn Io, control: &Control) -> Result<Option<Difference>> {
        self.options.validate()?;
        self.image.areas.check_blocks(self.memory.blocks())?;
        let plan = self.plan()?;
        let scan = |(block, planned): (usize, &BlockPlan)| {
            if planned.extents.is_empty() { Ok(Vec::new()) } else { self.memory.scan(block) }
        };
        let extents = plan.blocks.iter().enumerate().map(scan).collect::<Result<_>>()?;
        let chunk_bytes = to_usize(self.chunk_bytes);
        let stage = Compare { job: &self, chunk_bytes, extents, found: OnceLock::new() };
        let target = Target::reading(self.image, io, self.options);
        let chunks = ChunkQueue::new(&plan);
        threads::run(self.options.threads, control, &|team| {
            // Half of a slot for the image's bytes, half for the memory's.
            let pool = Pool::new(1, chunk_bytes.saturating_mul(2))?;
            Pump::new(team, &pool, &target)?.run(&stage, &chunks)
        })?;
        Ok(stage.found.into_inner())
    }

    /// All that is mapped for reading only.
    fn plan(&self) -> Result<Plan> {
        let mut blocks = vec![BlockPlan::default(); self.memory.blocks().len()];
        for region in self.memory.regions().iter().filter(|region| !region.writable) {
            let extent = Extent { offset: region.offset, length: region.length, source: 0 };
            blocks[region.block].extents.push(extent);
        }
        Plan::new(self.memory, self.chunk_bytes, blocks, Content::Places)
    }
}

/// What the threads of a comparison share.
struct Compare<'a> {
    job: &'a CompareJob<'a>,
    chunk_bytes: usize,
    /// What may hold data of each block that is mapped for reading only, in part at least.
    extents: Vec<Vec<Extent>>,
    found: OnceLock<Difference>,
}

impl Compare<'_> {
    /// Reads the chunk's memory to its place in `buffer`, which has room for a whole chunk; what has no data becomes zero.
    fn read_memory(&self, chunk: &Chunk, buffer: *mut u8) -> Result<()> {
        // SAFETY: the buffer has that many bytes and is this chunk's alone.
        unsafe { std::ptr::write_bytes(buffer, 0, self.chunk_bytes) };
        let extents = within(&self.extents[chunk.block], chunk.span()).collect();
        let data = Chunk { extents, ..*chunk };
        // SAFETY: the extents lie within the chunk, hence within the buffer, which is this chunk's alone.
        unsafe { read_extents(self.job.memory, &data, buffer) }
    }

    /// The runs of the chunk's pages whose bits are `set`.
    fn runs(&self, chunk: &Chunk, set: bool) -> impl Iterator<Item = PageRun> {
        let bitmap = &self.job.image.bitmaps[chunk.block];
        chunk.extents.iter().flat_map(move |extent| bitmap.runs(PageRun::of(extent.bytes()), set))
    }
}

// SAFETY: all requests are of the first half of the chunk's buffer, which is not touched before `finish`.
unsafe impl Stage for Compare<'_> {
    /// Whether a difference was found before, which is all that is wanted.
    type Pending = bool;

    fn start(&self, chunk: &Chunk, buffer: *mut u8, requests: &mut Vec<Request>) -> Result<bool> {
        if self.found.get().is_some() {
            return Ok(true);
        }
        let stored: Vec<PageRun> = self.runs(chunk, true).collect();
        requests.extend(join(&stored).map(|pages| Request::within(chunk, pages, buffer)));
        Ok(false)
    }

    fn finish(&self, chunk: &Chunk, is_over: bool, buffer: *mut u8) -> Result<()> {
        if is_over {
            return Ok(());
        }
        let second = buffer.wrapping_add(self.chunk_bytes);
        self.read_memory(chunk, second)?;
        // SAFETY: the first half of the slot has that many bytes, and nothing is in flight on it any more.
        let image = unsafe { std::slice::from_raw_parts_mut(buffer, self.chunk_bytes) };
        // SAFETY: the second half has as many, and nobody writes to it any more.
        let memory = unsafe { std::slice::from_raw_parts(second, self.chunk_bytes) };
        for run in self.runs(chunk, false) {
            let piece = chunk.piece(run.bytes());
            image[piece.buffer_offset..][..piece.length].fill(0);
        }
        let differs = |offset: &u64| {
            let page = chunk.place(*offset)..chunk.place(*offset) + PAGE;
            image[page.clone()] != memory[page]
        };
        let mut pages = chunk.extents.iter().flat_map(|extent| extent.bytes().step_by(PAGE));
        if let Some(offset) = pages.find(differs) {
            self.found.get_or_init(|| Difference { block: chunk.block, offset });
        }
        Ok(())
    }
}
