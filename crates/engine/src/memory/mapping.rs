//! Our own mapping of a region's file, for what must not be copied or cannot be written otherwise.

use std::ops::Range;

use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::{Extent, FileRange, Region, Segment, bus_error, file, hugetlb, spans};
use crate::io::Direction;
use crate::{Error, Result, to_usize};

/// Whether this kernel can say what is wrong with a page before it is touched, as mappings here have it do.
pub(super) fn check_populate() -> rustix::io::Result<()> {
    // SAFETY: the range is empty, and an unknown advice is refused before it is looked at.
    unsafe { madvise(std::ptr::null_mut(), 0, Advice::LinuxPopulateWrite) }
}

/// A shared mapping of a region's bytes, rounded out to whole pages. Its bytes are told by their offsets in the block.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: *mut u8,
    /// Bytes in the mapping.
    length: u64,
    /// Bytes between the first one of the mapping and that of the region.
    before: u64,
    /// The region's first byte, from the start of the block.
    start: u64,
    page_bytes: u64,
    file: FileRange,
    /// What it is for: to write, of hugetlbfs only, as pages of all other files are charged to whoever first touches them.
    direction: Direction,
    /// How the kernel is asked to make its pages present.
    populate: Advice,
}

// SAFETY: the mapping is plain memory that belongs to no thread; it is only reached through `write`, `watched` and by addresses,
// which callers keep free of overlaps.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing takes a reference to the mapped bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the bytes of `region`, which are in `file`. Nothing is allocated or reserved by that.
    pub(super) fn new(region: &Region, file: &FileRange, direction: Direction) -> Result<Self> {
        let page_bytes = region.page_bytes;
        let before = file.offset % page_bytes;
        let length = (before + region.length).next_multiple_of(page_bytes);
        let (protection, populate) = match direction {
            Direction::Read => (ProtFlags::READ, Advice::LinuxPopulateRead),
            Direction::Write => (ProtFlags::READ | ProtFlags::WRITE, Advice::LinuxPopulateWrite),
        };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let (bytes, offset) = (to_usize(length), file.offset - before);
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, protection, flags, &file.file, offset) };
        let base = base.map_err(|errno| file.name(Error::os("mapping the guest's memory failed", errno)))?;
        let (base, file, start) = (base.cast(), file.clone(), region.offset);
        let mapping = Self { base, length, before, start, page_bytes, file, direction, populate };
        // A child that the embedder forks has no use for it.
        // SAFETY: the range is the mapping that was just made, and the advice changes no bytes.
        let _ = unsafe { madvise(mapping.base.cast(), bytes, Advice::LinuxDontFork) };
        Ok(mapping)
    }

    /// The address of a byte, to be used as long as the mapping lives.
    pub fn address(&self, at: u64) -> *mut u8 {
        self.base.wrapping_add(to_usize(self.place(at)))
    }

    /// The same from the start of the mapping.
    fn place(&self, at: u64) -> u64 {
        self.before + (at - self.start)
    }

    /// Makes the pages of `span` present. To touch one that is damaged or gone, or for which the host has no page left, would
    /// end the process by SIGBUS; this says so.
    pub fn populate(&self, span: Range<u64>) -> Result<()> {
        self.populate_pages(&self.pages(span))
    }

    /// Makes the pages of `extents`, which are known to be there and lie in `span`, present, and calls `look`, which may read
    /// their bytes. Holes between them are left alone: to touch one would allocate it.
    ///
    /// # Errors
    /// `Io` for a page that is damaged or was taken away; whatever `look` has found is wrong then.
    pub fn look<T>(&self, span: Range<u64>, extents: &[Extent], look: impl FnOnce() -> T) -> Result<T> {
        extents.iter().try_for_each(|extent| self.populate(extent.offset..extent.offset + extent.length))?;
        self.watched(span, look)
    }

    /// Calls `touch`, which may access the bytes of `span`, whose pages were made present; an error if one has gone since:
    /// what was read is wrong then, and what was written is lost.
    fn watched<T>(&self, span: Range<u64>, touch: impl FnOnce() -> T) -> Result<T> {
        let addresses = self.address(span.start).addr()..self.address(span.end).addr();
        bus_error::watched(addresses, to_usize(self.page_bytes), touch).ok_or_else(|| self.taken_away())
    }

    /// Copies every segment to its place.
    ///
    /// # Safety
    /// Every segment must lie within the region, and its buffer be valid for reads of its length; nobody may write to it
    /// meanwhile.
    pub(super) unsafe fn write(&self, segments: Vec<Segment>) -> Result<()> {
        // Pages that touch are made present at once, as each run of them costs a system call.
        let pages = segments.iter().map(|segment| self.pages(segment.at..segment.at + segment.length as u64));
        spans::union(pages.collect()).iter().try_for_each(|run| self.populate_pages(run))?;
        for Segment { at, buffer, length } in segments {
            let target = self.address(at);
            // SAFETY: the buffer is valid by the caller's promise and no part of this mapping, whose addresses are only
            // given out for the kernel to write other pages; a page that has gone since it was made present is watched for.
            let copy = || unsafe { std::ptr::copy_nonoverlapping(buffer.cast_const(), target, length) };
            self.watched(at..at + length as u64, copy)?;
        }
        Ok(())
    }

    /// The whole pages that hold `span`, from the start of the mapping.
    fn pages(&self, span: Range<u64>) -> Range<u64> {
        let (start, end) = (self.place(span.start), self.place(span.end));
        start - start % self.page_bytes..end.next_multiple_of(self.page_bytes).min(self.length)
    }

    fn populate_pages(&self, pages: &Range<u64>) -> Result<()> {
        let first = self.base.wrapping_add(to_usize(pages.start));
        // SAFETY: the pages lie within the mapping, and making them present changes no bytes.
        let call = || unsafe { madvise(first.cast(), to_usize(pages.end - pages.start), self.populate) };
        retry_on_intr(call).map_err(|errno| self.file.name(self.failure(pages, errno)))
    }

    fn failure(&self, pages: &Range<u64>, errno: Errno) -> Error {
        let in_file = self.file.offset - self.before;
        let (at, end) = (in_file + pages.start, in_file + pages.end);
        let is_cut = || file::length(&self.file.file).is_ok_and(|length| length < end);
        match errno {
            Errno::HWPOISON => {
                Error::os(format!("the guest's memory has a hardware error behind offset {at}"), errno)
            }
            Errno::FAULT if self.direction == Direction::Read || is_cut() => self.taken_away(),
            Errno::FAULT | Errno::NOMEM if self.direction == Direction::Write => hugetlb::no_free_page(errno),
            _ => Error::os(format!("mapping the pages of the guest's memory at offset {at} failed"), errno),
        }
    }

    fn taken_away(&self) -> Error {
        self.file.name(file::taken_away(self.direction))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping; whoever had an address was told that it lives as long.
        let unmapped = unsafe { munmap(self.base.cast(), to_usize(self.length)) };
        debug_assert!(unmapped.is_ok(), "munmap failed");
    }
}
