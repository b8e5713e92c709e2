//! Image to guest memory: clear what must read zero, read each chunk's pages and put them in place, or read them straight
//! into their place.

use super::clear::Clearing;
use super::driver::{Driver, Part};
use super::plan::{Chunk, ChunkQueue, Seat, Sources};
use super::save::join;
use super::{Control, Options, Place, Plan, threads, to_usize};
use crate::bitmap::{PageBitmap, PageRun};
use crate::io::{Direction, Io, set_up_error};
use crate::memory::{Memory, Piece};
use crate::pool::Pool;
use crate::{PAGE_BYTES, Result};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// A restore that is ready to run.
#[derive(Debug)]
pub struct RestoreJob<'a> {
    /// Guest memory, opened for writing.
    pub memory: &'a Memory,
    /// Where each block's pages are in the image.
    pub places: &'a [Place],
    /// Which pages the image holds, for each block.
    pub bitmaps: &'a [PageBitmap],
    /// Which ranges each channel restores; only pages with set bits are read.
    pub plan: Plan,
    /// How to run.
    pub options: Options,
}

/// Shortest run of pages that is read straight into guest memory; shorter ones are cheaper to read together and to copy.
const MIN_DIRECT_PAGES: u64 = 64;

/// What a finished restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Bytes read from the image's page areas, joined zero pages included.
    pub read_bytes: u64,
    /// Bytes of memory that held other data where the image has none.
    pub cleared_bytes: u64,
}

impl RestoreJob<'_> {
    /// Clears and fills the memory. Nothing is written before every thread is ready to; memory that is mapped for reading
    /// only is left as it is ([`CompareJob`](super::CompareJob) looks at it).
    ///
    /// # Errors
    /// `Usage` for a plan or bitmaps that do not fit, `HostUnsupported` if the engine cannot be set up, `ImageInvalid`
    /// where the image ends too early, `Cancelled`, or whatever the memory or the disk said. After the first two the
    /// memory is as it was, after the others it is undefined.
    pub fn run(self, io: &dyn Io, image: BorrowedFd<'_>, control: &Control) -> Result<Restored> {
        self.options.validate()?;
        self.plan.validate(self.places, self.memory, Sources::Ignored)?;
        let clearing = Clearing::new(self.memory, self.bitmaps)?;
        let data_bytes = self.plan.data_bytes();
        control.start(data_bytes);
        let pool_slots = self.options.slots(data_bytes, self.plan.chunk_bytes);
        let shared = Shared {
            memory: self.memory,
            places: self.places,
            bitmaps: self.bitmaps,
            clearing,
            chunk_bytes: to_usize(self.plan.chunk_bytes),
            chunks: ChunkQueue::new(self.plan),
            read: AtomicU64::new(0),
            io,
            image,
            control,
        };
        threads::run(self.options.threads, control, &|team| {
            shared.work(team, pool_slots, self.options.requests())
        })?;
        Ok(Restored { read_bytes: shared.read.into_inner(), cleared_bytes: shared.clearing.cleared_bytes() })
    }
}

/// What the threads of a restore share.
struct Shared<'a> {
    memory: &'a Memory,
    places: &'a [Place],
    bitmaps: &'a [PageBitmap],
    clearing: Clearing<'a>,
    chunk_bytes: usize,
    chunks: ChunkQueue,
    read: AtomicU64,
    io: &'a dyn Io,
    image: BorrowedFd<'a>,
    control: &'a Control,
}

/// A chunk whose reads are in flight.
struct Pending {
    block: usize,
    bytes: u64,
    /// What to copy to its place once it was read; all else is read there.
    pieces: Vec<Piece>,
}

/// A run of pages and the address to read it to.
type Read = (PageRun, *mut u8);

impl Shared<'_> {
    fn work(&self, team: &threads::Team<'_>, slots: usize, requests: u32) -> Result<()> {
        let pool = Pool::new(slots, self.chunk_bytes)?;
        let queue = self.io.queue(requests, &pool).map_err(|cause| set_up_error(self.io.name(), cause))?;
        team.wait_for_all()?;
        // Cleared and filled pages are never the same ones, so that threads may do either at any time.
        self.clearing.work(team)?;
        let mut pending: Vec<Option<Pending>> = (0..slots).map(|_| None).collect();
        let mut driver = Driver::new(
            queue,
            slots,
            self.image.as_raw_fd(),
            Direction::Read,
            requests as usize,
            self.control,
        );
        let mut free: Vec<usize> = (0..slots).collect();
        let mut seat = Seat::default();
        while let Some(chunk) = self.chunks.next(&mut seat) {
            team.check()?;
            let slot = loop {
                if let Some(slot) = free.pop() {
                    break slot;
                }
                self.place_finished(&mut driver, &pool, &mut pending, &mut free)?;
            };
            let runs = self.runs_of(&chunk);
            if runs.is_empty() {
                free.push(slot);
                self.control.advance(chunk.data_bytes());
                continue;
            }
            let (reads, pieces) = self.reads(&chunk, &runs, pool.slot(slot))?;
            pending[slot] = Some(Pending { block: chunk.block, bytes: chunk.data_bytes(), pieces });
            self.start(chunk.block, &reads, slot, &mut driver)?;
        }
        while free.len() < slots {
            self.place_finished(&mut driver, &pool, &mut pending, &mut free)?;
        }
        Ok(())
    }

    /// The reads that the chunk's runs take, and what is to be copied from `buffer`, its slot's, afterwards.
    fn reads(&self, chunk: &Chunk, runs: &[PageRun], buffer: *mut u8) -> Result<(Vec<Read>, Vec<Piece>)> {
        let mut reads = Vec::new();
        let mut copied = Vec::new();
        for &run in runs {
            match self.direct_address(chunk.block, run)? {
                Some(address) => {
                    self.control.note_writing();
                    reads.push((run, address));
                }
                None => copied.push(run),
            }
        }
        let within = |run: &PageRun| to_usize(run.first * PAGE_BYTES - chunk.offset);
        reads.extend(join(&copied).map(|run| (run, buffer.wrapping_add(within(&run)))));
        // Zero pages that were read along with their neighbours may hold stale bytes: only set bits are put in place.
        let piece = |run: &PageRun| Piece {
            offset: run.first * PAGE_BYTES,
            length: to_usize(run.count * PAGE_BYTES),
            buffer_offset: within(run),
        };
        Ok((reads, copied.iter().map(piece).collect()))
    }

    /// Where the run's bytes can be read to without a copy; `None` if they cannot, or if the run is short.
    fn direct_address(&self, block: usize, run: PageRun) -> Result<Option<*mut u8>> {
        if run.count < MIN_DIRECT_PAGES {
            return Ok(None);
        }
        self.memory.direct_address(block, run.first * PAGE_BYTES, run.count * PAGE_BYTES)
    }

    fn start(&self, block: usize, reads: &[Read], slot: usize, driver: &mut Driver<'_>) -> Result<()> {
        for &(run, buffer) in reads {
            let file_offset = self.places[block].pages_offset + run.first * PAGE_BYTES;
            let length = to_usize(run.count * PAGE_BYTES);
            self.read.fetch_add(length as u64, Ordering::Relaxed);
            // SAFETY: neither the slot nor the run's place in guest memory is touched before the driver hands the slot back
            // as finished, and both outlive the driver.
            unsafe { driver.start(Part { slot, buffer, file_offset, length }) }?;
        }
        Ok(())
    }

    fn runs_of(&self, chunk: &Chunk) -> Vec<PageRun> {
        let bitmap = &self.bitmaps[chunk.block];
        let parts = chunk.ranges.iter().flat_map(|range| {
            self.memory.writable_parts(chunk.block, range.offset..range.offset + range.length)
        });
        let pages = |part: std::ops::Range<u64>| PageRun {
            first: part.start / PAGE_BYTES,
            count: (part.end - part.start) / PAGE_BYTES,
        };
        parts.flat_map(|part| bitmap.runs(pages(part), true)).collect()
    }

    /// Waits for a chunk if none has finished, puts every finished one in place and frees its slot.
    fn place_finished(
        &self,
        driver: &mut Driver<'_>,
        pool: &Pool,
        pending: &mut [Option<Pending>],
        free: &mut Vec<usize>,
    ) -> Result<()> {
        let mut next = driver.take_finished();
        if next.is_none() {
            driver.wait()?;
            next = driver.take_finished();
        }
        while let Some(slot) = next {
            if let Some(chunk) = pending[slot].take() {
                self.control.note_writing();
                // SAFETY: the slot's reads have finished and filled the pieces' bytes, which lie within the slot.
                unsafe { self.memory.write(chunk.block, &chunk.pieces, pool.slot(slot)) }?;
                self.control.advance(chunk.bytes);
            }
            free.push(slot);
            next = driver.take_finished();
        }
        Ok(())
    }
}
