//! Making pages read zero that hold something else.

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::{Backing, FileRange, Memory, Piece, Region, usage};
use crate::bitmap::{PageBitmap, PageRun};
use crate::{Error, PAGE_BYTES, Result, scan};

/// Bytes that are looked at in one go.
const BATCH_BYTES: usize = 1 << 20;

/// See [`Memory::clear`].
pub(super) fn clear(memory: &Memory, block: usize, bitmap: &PageBitmap) -> Result<u64> {
    let pages = memory.blocks.get(block).map_or(0, |length| length / PAGE_BYTES);
    if bitmap.pages() > pages {
        return Err(usage(format!("a bitmap of {} pages for block {block} of {pages}", bitmap.pages())));
    }
    let mut cleared = 0;
    let mut zeroing = Zeroing::new(memory, block);
    for extent in memory.scan(block)? {
        let pages = PageRun { first: extent.offset / PAGE_BYTES, count: extent.length / PAGE_BYTES };
        for run in bitmap.runs(pages, false) {
            if punch(memory.region_of(extent.source), run)? {
                cleared += run.count * PAGE_BYTES;
            } else {
                zeroing.add(extent.source, run)?;
            }
        }
    }
    zeroing.flush()?;
    Ok(cleared + zeroing.cleared)
}

/// Gives the run's backing up if the region is a shared file whose file system can; says whether it did.
fn punch(region: Option<&Region>, run: PageRun) -> Result<bool> {
    let Some(Region { backing: Backing::SharedFile(FileRange { file, offset }), offset: in_block, .. }) =
        region
    else {
        return Ok(false);
    };
    let at = offset + (run.first * PAGE_BYTES - in_block);
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    loop {
        match fallocate(file, flags, at, run.count * PAGE_BYTES) {
            Ok(()) => return Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::os(format!("clearing a memory file at offset {at} failed"), errno));
            }
        }
    }
}

/// Pages to be read and, where they are not zero already, overwritten with zeros: writing zeros to all of them would
/// allocate memory for those that are.
struct Zeroing<'a> {
    memory: &'a Memory,
    block: usize,
    source: u32,
    pieces: Vec<Piece>,
    /// Bytes in `pieces`, at most [`BATCH_BYTES`].
    filled: usize,
    buffer: Vec<u8>,
    zeros: Vec<u8>,
    cleared: u64,
}

impl<'a> Zeroing<'a> {
    fn new(memory: &'a Memory, block: usize) -> Self {
        let (buffer, zeros) = (Vec::new(), Vec::new());
        Self { memory, block, source: 0, pieces: Vec::new(), filled: 0, buffer, zeros, cleared: 0 }
    }

    fn add(&mut self, source: u32, run: PageRun) -> Result<()> {
        if source != self.source {
            self.flush()?;
            self.source = source;
        }
        let (mut offset, end) = (run.first * PAGE_BYTES, (run.first + run.count) * PAGE_BYTES);
        while offset < end {
            let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(BATCH_BYTES - self.filled);
            self.pieces.push(Piece { offset, length, buffer_offset: self.filled });
            self.filled += length;
            offset += length as u64;
            if self.filled == BATCH_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        self.buffer.resize(BATCH_BYTES, 0);
        self.zeros.resize(BATCH_BYTES, 0);
        // SAFETY: `add` placed every piece within the first BATCH_BYTES of a buffer that is ours alone.
        unsafe { self.memory.read(self.source, &self.pieces, self.buffer.as_mut_ptr()) }?;
        let mut dirty = Vec::new();
        for piece in self.pieces.drain(..) {
            let bytes = &self.buffer[piece.buffer_offset..piece.buffer_offset + piece.length];
            scan::nonzero_runs(bytes, piece.offset / PAGE_BYTES, |run| {
                let length = usize::try_from(run.count * PAGE_BYTES).unwrap_or(usize::MAX);
                dirty.push(Piece { offset: run.first * PAGE_BYTES, length, buffer_offset: 0 });
                self.cleared += run.count * PAGE_BYTES;
            });
        }
        self.filled = 0;
        // SAFETY: no run is longer than its piece, so all lie within the zeros, which nobody writes to.
        unsafe { self.memory.write(self.block, &dirty, self.zeros.as_ptr()) }
    }
}
