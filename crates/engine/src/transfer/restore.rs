//! Image to guest memory: clear what must read zero, read each chunk's pages and put them in place, or read them straight
//! into their place.

use std::sync::atomic::{AtomicU64, Ordering};

use super::chunks::{Chunk, ChunkQueue};
use super::clear::{self, Clear};
use super::gather::join;
use super::pump::{Pump, Stage};
use super::requests::Request;
use super::{Control, Options, Plan, threads, to_usize};
use crate::bitmap::PageRun;
use crate::image::ImageReader;
use crate::io::{Direction, Io};
use crate::memory::{Copying, Memory, Piece};
use crate::pool::Pool;
use crate::{PAGE_BYTES, Result};

/// A restore that is ready to run.
#[derive(Debug)]
pub struct RestoreJob<'a> {
    /// The image.
    pub image: &'a ImageReader,
    /// Guest memory, opened for writing.
    pub memory: &'a Memory,
    /// What each channel restores; only pages with set bits are read.
    pub plan: &'a Plan,
    /// How to run.
    pub options: Options,
    /// Whether what could be read to its place goes through a buffer all the same.
    pub copying: Copying,
}

/// Shortest run of pages that is read straight into guest memory; shorter ones are cheaper to read together and to copy.
const MIN_DIRECT_PAGES: u64 = 64;

/// What a finished restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Bytes read from the image's page areas, joined zero pages included.
    pub read_bytes: u64,
    /// Bytes of pages that were copied from a buffer to their place; the others were read there.
    pub copied_bytes: u64,
}

impl RestoreJob<'_> {
    /// Clears and fills the memory. Nothing is written before every thread is ready to; [`Control::progress`] says whether
    /// anything was. Memory that is mapped for reading only is left as it is ([`CompareJob`](super::CompareJob) looks at it).
    ///
    /// # Errors
    /// `Usage` for an image that is not of these blocks, `HostUnsupported` if the engine cannot be set up, `ImageInvalid`
    /// where the image ends too early, `Io` if a file of the memory was cut, `Cancelled`, or whatever the memory or the disk said.
    pub fn run(self, io: &dyn Io, control: &Control) -> Result<Restored> {
        self.options.validate()?;
        self.image.areas().check_blocks(self.memory.blocks())?;
        self.memory.prepare_to_write()?;
        let chunk_bytes = self.plan.chunk_bytes();
        let to_clear = clear::plan(self.memory, chunk_bytes)?;
        let (cells_to_clear, chunks) = (ChunkQueue::new(&to_clear), ChunkQueue::new(self.plan));
        let clearing = Clear::new(self.memory, self.image.bitmaps(), control)?;
        let data_bytes = self.plan.data_bytes();
        control.start(data_bytes);
        let slots = self.options.slots(data_bytes, chunk_bytes);
        let (read, copied) = (AtomicU64::new(0), AtomicU64::new(0));
        let filling = Fill { job: &self, control, read, copied };
        threads::run(self.options.threads, control, &|team| {
            let pool = Pool::new(slots, to_usize(chunk_bytes))?;
            let mut pump = Pump::new(team, &pool, io, self.options.requests(), self.image.path())?;
            team.wait_for_all()?;
            // Cleared and filled pages are never the same ones, so that threads may do either at any time.
            pump.run(&clearing, &cells_to_clear)?;
            pump.run(&filling, &chunks)
        })?;
        self.memory.check_not_cut()?;
        Ok(Restored { read_bytes: filling.read.into_inner(), copied_bytes: filling.copied.into_inner() })
    }
}

/// Puts the image's pages in place.
struct Fill<'a> {
    job: &'a RestoreJob<'a>,
    control: &'a Control,
    read: AtomicU64,
    copied: AtomicU64,
}

/// A chunk whose reads are in flight.
struct InFlight {
    block: usize,
    planned_bytes: u64,
    /// What to copy to its place once it was read; all else is read there.
    pieces: Vec<Piece>,
}

impl Fill<'_> {
    /// The runs of pages of a chunk that the image holds and that may be written.
    fn runs(&self, chunk: &Chunk) -> Vec<PageRun> {
        let bitmap = &self.job.image.bitmaps()[chunk.block];
        let parts = chunk.extents.iter().flat_map(|extent| {
            self.job.memory.writable_parts(chunk.block, extent.offset..extent.offset + extent.length)
        });
        let pages = parts.map(|part| PageRun::of(part.start, part.end - part.start));
        pages.flat_map(|pages| bitmap.runs(pages, true)).collect()
    }

    /// Where the run's bytes can be read to without a copy; `None` if they cannot, or if the run is short.
    fn direct_address(&self, block: usize, run: PageRun) -> Result<Option<*mut u8>> {
        if run.count < MIN_DIRECT_PAGES || self.job.copying == Copying::Always {
            return Ok(None);
        }
        self.job.memory.direct_address(block, run.first * PAGE_BYTES, run.count * PAGE_BYTES)
    }

    fn request(&self, block: usize, run: PageRun, buffer: *mut u8) -> Request<'_> {
        self.read.fetch_add(run.count * PAGE_BYTES, Ordering::Relaxed);
        let image = self.job.image;
        Request::of_pages(image.fd(), Direction::Read, image.areas(), (block, run), buffer)
    }
}

// SAFETY: requests are of the chunk's buffer, which is not touched before `finish`, or of the run's place in guest memory,
// which is mapped as long as the memory is there and which no other chunk has.
unsafe impl Stage for Fill<'_> {
    type Pending = InFlight;

    fn start<'a>(
        &'a self,
        chunk: &Chunk,
        buffer: *mut u8,
        requests: &mut Vec<Request<'a>>,
    ) -> Result<Self::Pending> {
        let mut copied = Vec::new();
        for run in self.runs(chunk) {
            match self.direct_address(chunk.block, run)? {
                Some(address) => {
                    self.control.note_writing();
                    requests.push(self.request(chunk.block, run, address));
                }
                None => copied.push(run),
            }
        }
        let within = |run: &PageRun| to_usize(run.first * PAGE_BYTES - chunk.offset);
        let joined = join(&copied).into_iter();
        requests.extend(joined.map(|run| self.request(chunk.block, run, buffer.wrapping_add(within(&run)))));
        // Zero pages that were read along with their neighbours may hold stale bytes: only set bits are put in place.
        let piece = |run: &PageRun| Piece {
            offset: run.first * PAGE_BYTES,
            length: to_usize(run.count * PAGE_BYTES),
            buffer_offset: within(run),
        };
        let pieces = copied.iter().map(piece).collect();
        Ok(InFlight { block: chunk.block, planned_bytes: chunk.data_bytes(), pieces })
    }

    fn finish(&self, InFlight { block, planned_bytes, pieces }: InFlight, buffer: *mut u8) -> Result<()> {
        if !pieces.is_empty() {
            self.control.note_writing();
            let bytes: usize = pieces.iter().map(|piece| piece.length).sum();
            self.copied.fetch_add(bytes as u64, Ordering::Relaxed);
            // SAFETY: the chunk's reads have ended and filled the pieces' bytes, which lie within its buffer.
            unsafe { self.job.memory.write(block, &pieces, buffer) }?;
        }
        self.control.advance(planned_bytes);
        Ok(())
    }
}
