//! Image to guest memory: clear what must read zero, read each chunk's pages and put them in place, or read them straight
//! into their place.

use std::sync::atomic::{AtomicU64, Ordering};

use super::chunks::{Chunk, ChunkQueue};
use super::clear::{self, Clear};
use super::gather::join;
use super::pump::{Pump, Stage};
use super::requests::{Request, Target};
use super::{Control, Options, Plan, threads, to_usize, writable};
use crate::Result;
use crate::bitmap::PageRun;
use crate::image::ImageReader;
use crate::io::Io;
use crate::memory::{Copying, Memory, Piece};
use crate::pool::Pool;

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

impl RestoreJob<'_> {
    /// Clears and fills the memory. Nothing is written before every thread is ready to; [`Control::progress`] says whether
    /// anything was. Memory that is mapped for reading only is left as it is ([`CompareJob`](super::CompareJob) looks at it).
    /// Returns how many bytes of pages went through a buffer of ours.
    ///
    /// # Errors
    /// `Usage` for an image that is not of these blocks, `HostUnsupported` if the engine cannot be set up, `ImageInvalid`
    /// where the image ends too early, `Io` if a file of the memory was cut, `Cancelled`, or whatever the memory or the disk said.
    pub fn run(self, io: &dyn Io, control: &Control) -> Result<u64> {
        self.options.validate()?;
        self.image.areas.check_blocks(self.memory.blocks())?;
        self.memory.prepare_to_write()?;
        let chunk_bytes = self.plan.chunk_bytes;
        let to_clear = clear::plan(self.memory, chunk_bytes)?;
        let (cells_to_clear, chunks) = (ChunkQueue::new(&to_clear), ChunkQueue::new(self.plan));
        let clearing = Clear::new(self.memory, &self.image.bitmaps, control);
        let slots = self.options.slots(self.plan.data_bytes(), chunk_bytes);
        let target = Target::reading(self.image, io, self.options);
        let filling = Fill { job: &self, control, copied: AtomicU64::new(0) };
        threads::run(self.options.threads, control, &|team| {
            let pool = Pool::new(slots, to_usize(chunk_bytes))?;
            let mut pump = Pump::new(team, &pool, &target)?;
            team.wait_for_all()?;
            // Cleared and filled pages are never the same ones, so that threads may do either at any time.
            team.each_chunk(&cells_to_clear, |chunk| clearing.clear(chunk, pool.slot(0)))?;
            pump.run(&filling, &chunks)
        })?;
        self.memory.check_not_cut()?;
        Ok(filling.copied.into_inner())
    }
}

/// Puts the image's pages in place.
struct Fill<'a> {
    job: &'a RestoreJob<'a>,
    control: &'a Control,
    copied: AtomicU64,
}

impl Fill<'_> {
    /// Where the run's bytes can be read to without a copy; `None` if they cannot, or if the run is short.
    fn direct_address(&self, block: usize, run: PageRun) -> Result<Option<*mut u8>> {
        if run.count < MIN_DIRECT_PAGES || self.job.copying == Copying::Always {
            return Ok(None);
        }
        self.job.memory.direct_address(block, run.bytes().start, run.length())
    }
}

// SAFETY: requests are of the chunk's buffer, which is not touched before `finish`, or of the run's place in guest memory,
// which is mapped as long as the memory is there and which no other chunk has.
unsafe impl Stage for Fill<'_> {
    /// What to copy to its place once it was read; all else is read there.
    type Pending = Vec<Piece>;

    fn start(&self, chunk: &Chunk, buffer: *mut u8, requests: &mut Vec<Request>) -> Result<Vec<Piece>> {
        let mut copied = Vec::new();
        for part in writable(self.job.memory, &self.job.image.bitmaps, chunk, true) {
            let pages = PageRun::of(part.bytes());
            match self.direct_address(chunk.block, pages)? {
                Some(address) => {
                    self.control.note_writing();
                    requests.push(Request { pages, address });
                }
                None => copied.push(pages),
            }
        }
        requests.extend(join(&copied).map(|pages| Request::within(chunk, pages, buffer)));
        // Zero pages that were read along with their neighbours may hold stale bytes: only set bits are put in place.
        Ok(copied.iter().map(|run| chunk.piece(run.bytes())).collect())
    }

    fn finish(&self, chunk: &Chunk, pieces: Vec<Piece>, buffer: *mut u8) -> Result<()> {
        if pieces.is_empty() {
            return Ok(());
        }
        self.control.note_writing();
        let bytes: usize = pieces.iter().map(|piece| piece.length).sum();
        self.copied.fetch_add(bytes as u64, Ordering::Relaxed);
        // SAFETY: the chunk's reads have ended and filled the pieces' bytes, which lie within its buffer.
        unsafe { self.job.memory.write(chunk.block, &pieces, buffer) }
    }
}
