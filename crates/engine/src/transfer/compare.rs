//! Memory that is mapped for reading only, held against the image that is to be restored.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use super::driver::{Driver, Part};
use super::plan::{Chunk, ChunkQueue, Seat, Sources};
use super::save::join;
use super::{Control, Options, Place, Plan, Range, threads, to_usize};
use crate::bitmap::{PageBitmap, PageRun};
use crate::io::{Direction, Io, set_up_error};
use crate::memory::{Extent, Memory, Piece};
use crate::pool::Pool;
use crate::{PAGE_BYTES, Result, scan};

/// A comparison that is ready to run. Nothing can be restored into memory that is mapped for reading only, so it must hold what
/// the image says already.
#[derive(Debug)]
pub struct CompareJob<'a> {
    /// Guest memory.
    pub memory: &'a Memory,
    /// Where each block's pages are in the image.
    pub places: &'a [Place],
    /// Which pages the image holds, for each block; all others must be zero.
    pub bitmaps: &'a [PageBitmap],
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
    /// Compares all memory that is mapped for reading only; returns the first difference that was found.
    ///
    /// # Errors
    /// `Usage` for places and bitmaps that do not fit, `HostUnsupported` if the engine cannot be set up, `ImageInvalid`
    /// where the image ends too early, `Cancelled`, or whatever the memory or the disk said.
    pub fn run(self, io: &dyn Io, image: BorrowedFd<'_>, control: &Control) -> Result<Option<Difference>> {
        self.options.validate()?;
        super::check_bitmaps(self.memory, self.bitmaps)?;
        let read_only = self.memory.regions().iter().filter(|region| !region.writable);
        let ranges: Vec<Range> = read_only
            .map(|region| Range {
                block: region.block,
                offset: region.offset,
                length: region.length,
                source: 0,
            })
            .collect();
        if ranges.is_empty() {
            return Ok(None);
        }
        let mut extents = vec![Vec::new(); self.bitmaps.len()];
        for range in &ranges {
            extents[range.block] = self.memory.scan(range.block)?;
        }
        let plan = Plan { chunk_bytes: self.chunk_bytes, channels: vec![ranges] };
        plan.validate(self.places, self.memory, Sources::Ignored)?;
        let (threads, requests) = (self.options.threads, self.options.requests());
        let comparing = Comparing {
            chunks: ChunkQueue::new(plan),
            job: self,
            extents,
            found: Mutex::default(),
            io,
            image,
            control,
        };
        threads::run(threads, control, &|team| comparing.work(team, requests))?;
        Ok(comparing.found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the threads of a comparison share.
struct Comparing<'a> {
    job: CompareJob<'a>,
    chunks: ChunkQueue,
    /// What may hold data of each block that is mapped for reading only, in part at least.
    extents: Vec<Vec<Extent>>,
    found: Mutex<Option<Difference>>,
    io: &'a dyn Io,
    image: BorrowedFd<'a>,
    control: &'a Control,
}

impl Comparing<'_> {
    fn work(&self, team: &threads::Team<'_>, requests: u32) -> Result<()> {
        // One slot for the image's bytes, one for the memory's.
        let pool = Pool::new(2, to_usize(self.job.chunk_bytes))?;
        let queue = self.io.queue(requests, &pool).map_err(|cause| set_up_error(self.io.name(), cause))?;
        let mut driver =
            Driver::new(queue, 1, self.image.as_raw_fd(), Direction::Read, requests as usize, self.control);
        let mut seat = Seat::default();
        while let Some(chunk) = self.chunks.next(&mut seat) {
            team.check()?;
            self.read_image(&chunk, pool.slot(0), &mut driver)?;
            self.read_memory(&chunk, pool.slot(1))?;
            let length = to_usize(self.job.chunk_bytes);
            // SAFETY: the slot has that many bytes, and nobody writes to it before the next chunk is read.
            let image = unsafe { std::slice::from_raw_parts(pool.slot(0), length) };
            // SAFETY: as above.
            let memory = unsafe { std::slice::from_raw_parts(pool.slot(1), length) };
            let difference = self.difference(&chunk, image, memory);
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            *found = found.or(difference);
            if found.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Reads the pages of the chunk that the image holds to their places in `buffer`, and waits for them.
    fn read_image(&self, chunk: &Chunk, buffer: *mut u8, driver: &mut Driver<'_>) -> Result<()> {
        let runs: Vec<PageRun> = self.runs(chunk, true).collect();
        for run in join(&runs) {
            let offset = run.first * PAGE_BYTES;
            let part = Part {
                slot: 0,
                buffer: buffer.wrapping_add(to_usize(offset - chunk.offset)),
                file_offset: self.job.places[chunk.block].pages_offset + offset,
                length: to_usize(run.count * PAGE_BYTES),
            };
            // SAFETY: the slot is not touched before nothing is in flight any more, and it outlives the driver.
            unsafe { driver.start(part) }?;
        }
        while driver.in_flight() > 0 {
            driver.wait()?;
        }
        while driver.take_finished().is_some() {}
        Ok(())
    }

    /// Reads the chunk's memory to its place in `buffer`.
    fn read_memory(&self, chunk: &Chunk, buffer: *mut u8) -> Result<()> {
        let end = chunk.ranges.last().map_or(chunk.offset, |range| range.offset + range.length);
        // SAFETY: a chunk is no longer than a slot, and this thread alone uses this one.
        unsafe { std::ptr::write_bytes(buffer, 0, to_usize(end - chunk.offset)) };
        let extents = &self.extents[chunk.block];
        let first = extents.partition_point(|extent| extent.offset + extent.length <= chunk.offset);
        for extent in extents[first..].iter().take_while(|extent| extent.offset < end) {
            let start = extent.offset.max(chunk.offset);
            let piece = Piece {
                offset: start,
                length: to_usize((extent.offset + extent.length).min(end) - start),
                buffer_offset: to_usize(start - chunk.offset),
            };
            // SAFETY: the piece lies within the chunk, hence within the slot, which this thread alone uses.
            unsafe { self.job.memory.read(extent.source, &[piece], buffer) }?;
        }
        Ok(())
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
        let bitmap = &self.job.bitmaps[chunk.block];
        chunk.ranges.iter().flat_map(move |range| {
            bitmap.runs(PageRun { first: range.offset / PAGE_BYTES, count: range.length / PAGE_BYTES }, set)
        })
    }
}
