//! Memory that is mapped for reading only, held against the image that is to be restored.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::chunks::{Chunk, ChunkQueue};
use super::gather::{join, read_extents};
use super::pump::{Pump, Stage};
use super::requests::Request;
use super::{BlockPlan, Control, Gaps, Options, Plan, Sources, threads, to_usize};
use crate::bitmap::PageRun;
use crate::image::ImageReader;
use crate::io::{Direction, Io};
use crate::memory::{Extent, Memory};
use crate::pool::Pool;
use crate::{PAGE_BYTES, Result, scan};

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
        self.image.areas().check_blocks(self.memory.blocks())?;
        let plan = self.plan()?;
        if plan.data_bytes() == 0 {
            return Ok(None);
        }
        let scan = |(block, planned): (usize, &BlockPlan)| match planned.extents.is_empty() {
            true => Ok(Vec::new()),
            false => self.memory.scan(block),
        };
        let extents = plan.blocks().iter().enumerate().map(scan).collect::<Result<_>>()?;
        let chunk_bytes = to_usize(self.chunk_bytes);
        let stage = Compare { job: &self, chunk_bytes, extents, found: Mutex::default() };
        let chunks = ChunkQueue::new(&plan);
        threads::run(self.options.threads, control, &|team| {
            // Half of a slot for the image's bytes, half for the memory's.
            let pool = Pool::new(1, chunk_bytes.saturating_mul(2))?;
            Pump::new(team, &pool, io, self.options.requests(), self.image.path())?.run(&stage, &chunks)
        })?;
        Ok(stage.found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// All that is mapped for reading only.
    fn plan(&self) -> Result<Plan> {
        let mut blocks = vec![BlockPlan::default(); self.memory.blocks().len()];
        for region in self.memory.regions().iter().filter(|region| !region.writable) {
            let extent = Extent { offset: region.offset, length: region.length, source: 0 };
            blocks[region.block].extents.push(extent);
        }
        Plan::new(self.memory, self.chunk_bytes, blocks, Gaps::Unknown, Sources::Ignored)
    }
}

/// What the threads of a comparison share.
struct Compare<'a> {
    job: &'a CompareJob<'a>,
    chunk_bytes: usize,
    /// What may hold data of each block that is mapped for reading only, in part at least.
    extents: Vec<Vec<Extent>>,
    found: Mutex<Option<Difference>>,
}

impl Compare<'_> {
    fn found(&self) -> MutexGuard<'_, Option<Difference>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the chunk's memory to its place in `buffer`, which has room for a whole chunk; what has no data becomes zero.
    fn read_memory(&self, chunk: &Chunk, buffer: *mut u8) -> Result<()> {
        // SAFETY: the buffer has that many bytes and is this chunk's alone.
        unsafe { std::ptr::write_bytes(buffer, 0, self.chunk_bytes) };
        let end = chunk.extents.last().map_or(chunk.offset, |extent| extent.offset + extent.length);
        let all = &self.extents[chunk.block];
        let first = all.partition_point(|extent| extent.offset + extent.length <= chunk.offset);
        let within = all[first..].iter().take_while(|extent| extent.offset < end).map(|extent| {
            let offset = extent.offset.max(chunk.offset);
            Extent { offset, length: (extent.offset + extent.length).min(end) - offset, ..*extent }
        });
        let data = Chunk { extents: within.collect(), ..*chunk };
        // SAFETY: the extents lie within the chunk, hence within the buffer, which is this chunk's alone.
        unsafe { read_extents(self.job.memory, &data, buffer) }
    }

    /// The chunk's first page that is not what the image says.
    fn difference(&self, chunk: &Chunk, image: &[u8], memory: &[u8]) -> Option<Difference> {
        let page = |page: u64| {
            let start = to_usize(page * PAGE_BYTES - chunk.offset);
            start..start + to_usize(PAGE_BYTES)
        };
        let pages = |run: PageRun| run.first..run.first + run.count;
        let stored = self.runs(chunk, true).flat_map(pages);
        let zero = self.runs(chunk, false).flat_map(pages);
        let differing = stored
            .filter(|&at| image[page(at)] != memory[page(at)])
            .chain(zero.filter(|&at| !scan::is_zero(&memory[page(at)])));
        differing.min().map(|at| Difference { block: chunk.block, offset: at * PAGE_BYTES })
    }

    /// The runs of the chunk's pages whose bits are `set`.
    fn runs(&self, chunk: &Chunk, set: bool) -> impl Iterator<Item = PageRun> {
        let bitmap = &self.job.image.bitmaps()[chunk.block];
        chunk
            .extents
            .iter()
            .flat_map(move |extent| bitmap.runs(PageRun::of(extent.offset, extent.length), set))
    }
}

// SAFETY: all requests are of the first half of the chunk's buffer, which is not touched before `finish`.
unsafe impl Stage for Compare<'_> {
    /// The chunk; `None` once a difference was found, which is all that is wanted.
    type Pending = Option<Chunk>;

    fn start<'a>(
        &'a self,
        chunk: &Chunk,
        buffer: *mut u8,
        requests: &mut Vec<Request<'a>>,
    ) -> Result<Self::Pending> {
        if self.found().is_some() {
            return Ok(None);
        }
        let image = self.job.image;
        let stored: Vec<PageRun> = self.runs(chunk, true).collect();
        requests.extend(join(&stored).into_iter().map(|run| {
            let buffer = buffer.wrapping_add(to_usize(run.first * PAGE_BYTES - chunk.offset));
            Request::of_pages(image.fd(), Direction::Read, image.areas(), (chunk.block, run), buffer)
        }));
        Ok(Some(chunk.clone()))
    }

    fn finish(&self, chunk: Option<Chunk>, buffer: *mut u8) -> Result<()> {
        let Some(chunk) = chunk else { return Ok(()) };
        let second = buffer.wrapping_add(self.chunk_bytes);
        self.read_memory(&chunk, second)?;
        // SAFETY: the first half of the slot has that many bytes, and nothing is in flight on it any more.
        let image = unsafe { std::slice::from_raw_parts(buffer, self.chunk_bytes) };
        // SAFETY: the second half has as many, and nobody writes to it any more.
        let memory = unsafe { std::slice::from_raw_parts(second, self.chunk_bytes) };
        if let Some(difference) = self.difference(&chunk, image, memory) {
            self.found().get_or_insert(difference);
        }
        Ok(())
    }
}
