//! Guest memory to image: read a chunk, find its zero pages, write the rest.

use super::driver::{Driver, Part};
use super::plan::{Chunk, ChunkQueue, Seat, Sources};
use super::read::read_data;
use super::{Buffers, Control, JOINED_ZERO_PAGES, Options, Place, Plan, threads, to_usize};
use crate::bitmap::{PageBitmap, PageRun};
use crate::image::ImageWriter;
use crate::io::{Direction, set_up_error};
use crate::memory::Memory;
use crate::pool::Pool;
use crate::{PAGE_BYTES, Result};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// A save that is ready to run.
#[derive(Debug)]
pub struct SaveJob<'a> {
    /// Guest memory, standing still.
    pub memory: &'a Memory,
    /// Where each block's pages go.
    pub places: &'a [Place],
    /// Which ranges to read, and on which channel.
    pub plan: Plan,
    /// How to run.
    pub options: Options,
    /// Pools that were made beforehand; those that are missing are made by the save.
    pub buffers: &'a Buffers,
}

/// What a finished save found and wrote.
#[derive(Debug)]
pub struct Saved {
    /// For each block, which pages the image now holds.
    pub bitmaps: Vec<PageBitmap>,
    /// Bytes written to the image's page areas, joined zero pages included.
    pub written_bytes: u64,
}

impl SaveJob<'_> {
    /// Transfers everything and returns the bitmaps. The file is set to the length of the page areas first, so that
    /// no write extends it; metadata, syncing and publishing are the caller's.
    ///
    /// # Errors
    /// `Usage` for a plan that does not fit, `Cancelled`, or whatever the memory or the disk said. The image is
    /// incomplete then and is to be discarded.
    pub fn run(self, image: &ImageWriter, control: &Control) -> Result<Saved> {
        self.options.validate()?;
        self.plan.validate(self.places, self.memory, Sources::Used)?;
        let bitmaps = self.places.iter().map(|place| PageBitmap::new(place.length / PAGE_BYTES)).collect();
        let end = self.places.iter().map(|place| place.pages_offset + place.length).max().unwrap_or(0);
        image.set_length(end)?;
        image.begin_transfer()?;
        let data_bytes = self.plan.data_bytes();
        control.start(data_bytes);
        let pool_slots = self.options.slots(data_bytes, self.plan.chunk_bytes);
        let shared = Shared {
            memory: self.memory,
            places: self.places,
            chunk_bytes: to_usize(self.plan.chunk_bytes),
            chunks: ChunkQueue::new(self.plan),
            bitmaps,
            written: AtomicU64::new(0),
            buffers: self.buffers,
            image,
            control,
        };
        threads::run(self.options.threads, control, &|team| {
            shared.work(team, pool_slots, self.options.requests())
        })?;
        image.end_transfer()?;
        Ok(Saved { bitmaps: shared.bitmaps, written_bytes: shared.written.into_inner() })
    }
}

/// What the threads of a save share.
struct Shared<'a> {
    memory: &'a Memory,
    places: &'a [Place],
    chunk_bytes: usize,
    chunks: ChunkQueue,
    bitmaps: Vec<PageBitmap>,
    written: AtomicU64,
    buffers: &'a Buffers,
    image: &'a ImageWriter,
    control: &'a Control,
}

impl Shared<'_> {
    fn work(&self, team: &threads::Team<'_>, slots: usize, requests: u32) -> Result<()> {
        let pool = self.buffers.take(slots, self.chunk_bytes)?;
        let slots = pool.slots();
        let io = self.image.io();
        let queue = io.queue(requests, &pool).map_err(|cause| set_up_error(io.name(), cause))?;
        let fd = self.image.fd().as_raw_fd();
        let mut driver = Driver::new(queue, slots, fd, Direction::Write, requests as usize, self.control);
        let mut free: Vec<usize> = (0..slots).collect();
        let mut seat = Seat::default();
        while let Some(chunk) = self.chunks.next(&mut seat) {
            team.check()?;
            let slot = loop {
                match free.pop().or_else(|| driver.take_finished()) {
                    Some(slot) => break slot,
                    None => driver.wait()?,
                }
            };
            if !self.save_chunk(&chunk, slot, &pool, &mut driver)? {
                free.push(slot);
            }
            self.control.advance(chunk.data_bytes());
        }
        while driver.in_flight() > 0 {
            driver.wait()?;
        }
        Ok(())
    }

    /// Reads `chunk` into `slot` and starts the writes of what is not zero; says whether there was any.
    fn save_chunk(&self, chunk: &Chunk, slot: usize, pool: &Pool, driver: &mut Driver<'_>) -> Result<bool> {
        let buffer = pool.slot(slot);
        // SAFETY: the slot holds a whole chunk, and no I/O is in flight on it.
        let runs = unsafe { read_data(self.memory, chunk, buffer) }?;
        for &run in &runs {
            self.bitmaps[chunk.block].set(run);
        }
        let block_offset = self.places[chunk.block].pages_offset;
        for run in join(&runs) {
            self.written.fetch_add(run.count * PAGE_BYTES, Ordering::Relaxed);
            let offset = run.first * PAGE_BYTES;
            let part = Part {
                slot,
                buffer: buffer.wrapping_add(to_usize(offset - chunk.offset)),
                file_offset: block_offset + offset,
                length: to_usize(run.count * PAGE_BYTES),
            };
            // SAFETY: the slot is not touched again before the driver hands it back as finished.
            unsafe { driver.start(part) }?;
        }
        Ok(!runs.is_empty())
    }
}

/// The runs to transfer: those separated by few zero pages become one.
pub(super) fn join(runs: &[PageRun]) -> impl Iterator<Item = PageRun> + '_ {
    let mut rest = runs.iter().copied().peekable();
    std::iter::from_fn(move || {
        let mut joined = rest.next()?;
        while let Some(next) =
            rest.next_if(|next| next.first - (joined.first + joined.count) <= JOINED_ZERO_PAGES)
        {
            joined.count = next.first + next.count - joined.first;
        }
        Some(joined)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn runs_are_joined_across_short_gaps_only() {
        let runs = [run(0, 2), run(18, 1), run(36, 1), run(40, 4)];
        let joined: Vec<_> = join(&runs).collect();
        assert_eq!(joined, [run(0, 19), run(36, 8)]);
    }
}
