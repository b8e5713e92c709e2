//! hugetlbfs: files that take no write(2) and know no holes.

use std::fs::File;
use std::ops::Range;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::{Backing, FileRange, Memory, Segment, file, pagemap, spans};
use crate::{Error, ErrorKind, Result};

/// Our own shared mapping of a region's file, through which it is written.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut u8,
    length: usize,
    /// File offset of the first byte, a multiple of the huge page size.
    offset: u64,
    page_bytes: usize,
}

// SAFETY: the mapping is plain memory that belongs to no thread; it is only reached through `write`, which the
// caller keeps free of overlaps.
unsafe impl Send for Mapping {}
// SAFETY: as above; `write` takes no reference to the mapped bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of the file, rounded out to huge pages. Nothing is allocated or reserved by that.
    pub fn new(at: &FileRange, length: u64, page_bytes: u64) -> Result<Self> {
        let failure = |cause: std::io::Error| Error::os("mapping a hugetlbfs file failed", cause);
        let too_long = |_| failure(std::io::ErrorKind::OutOfMemory.into());
        let offset = at.offset - at.offset % page_bytes;
        let length = (at.offset + length).next_multiple_of(page_bytes) - offset;
        let length = usize::try_from(length).map_err(too_long)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let base = unsafe { mmap(std::ptr::null_mut(), length, protection, flags, &at.file, offset) };
        let base = base.map_err(|errno| failure(errno.into()))?;
        let page_bytes = usize::try_from(page_bytes).map_err(too_long)?;
        Ok(Self { base: base.cast(), length, offset, page_bytes })
    }

    /// Copies every segment to its file offset.
    ///
    /// # Safety
    /// Every segment's buffer must be valid for reads of its length, and nobody may write to it meanwhile.
    pub unsafe fn write(&self, segments: Vec<Segment>) -> Result<()> {
        for segment in segments {
            let place = self.place(&segment)?;
            self.populate(&place)?;
            // SAFETY: `place` was checked to lie within the mapping.
            let target = unsafe { self.base.add(place.start) };
            // SAFETY: the buffer is valid by the caller's promise and no part of this mapping, which is known to
            // nobody else; the pages written to are there.
            unsafe { std::ptr::copy_nonoverlapping(segment.buffer.cast_const(), target, segment.length) };
        }
        Ok(())
    }

    fn place(&self, segment: &Segment) -> Result<Range<usize>> {
        let start = segment.at.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok());
        start
            .and_then(|start| Some(start..start.checked_add(segment.length)?))
            .filter(|place| place.end <= self.length)
            .ok_or_else(|| Error::new(ErrorKind::Usage, "a write lies outside of its hugetlbfs mapping"))
    }

    /// Makes the pages of `place` present: where the host has none left, this fails, but a plain write would end the
    /// process by SIGBUS.
    fn populate(&self, place: &Range<usize>) -> Result<()> {
        let start = place.start - place.start % self.page_bytes;
        let length = place.end.next_multiple_of(self.page_bytes).min(self.length) - start;
        // SAFETY: `place` lies within the mapping, whose length is a multiple of the page size.
        let first = unsafe { self.base.add(start) };
        // SAFETY: populating changes no bytes, and the range is mapped by us.
        let populated = unsafe { madvise(first.cast(), length, Advice::LinuxPopulateWrite) };
        populated.map_err(|errno| match errno {
            rustix::io::Errno::INVAL => {
                Error::os("writing to hugetlbfs needs MADV_POPULATE_WRITE, which came with Linux 5.14", errno)
                    .with_kind(ErrorKind::HostUnsupported)
            }
            _ => Error::os("the host has no free huge page for the guest's memory", errno)
                .with_kind(ErrorKind::NoSpace),
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of a mapping that nobody else knows.
        let unmapped = unsafe { munmap(self.base.cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "munmap failed");
    }
}

/// The pages of `span` (file offsets) of a shared hugetlbfs file that hold data.
///
/// If the pages that the process has mapped are as many as the file has allocated, they are all there are. Else
/// someone else put pages there, and every page of the file may be one of them.
pub(super) fn data_spans(memory: &Memory, file: &File, span: Range<u64>) -> Result<Vec<Range<u64>>> {
    let present = present_spans(memory, file)?;
    let bytes: u64 = present.iter().map(|span| span.end - span.start).sum();
    if bytes != file::allocated_bytes(file)? {
        return file::hugetlb_spans(file, span);
    }
    let inside = |present: &Range<u64>| present.start.max(span.start)..present.end.min(span.end);
    Ok(present.iter().map(inside).filter(|span| !span.is_empty()).collect())
}

/// The file offsets that processes have mapped and present, over all regions of the file.
fn present_spans(memory: &Memory, file: &File) -> Result<Vec<Range<u64>>> {
    let identity = file::identity(file)?;
    let mut present = Vec::new();
    for region in memory.regions() {
        let Backing::SharedHugetlb { file: at, process: Some(mapped) } = &region.backing else {
            continue;
        };
        if file::identity(&at.file)? != identity {
            continue;
        }
        let span = mapped.address..mapped.address + region.length;
        for span in pagemap::populated(&mapped.process, span, pagemap::ZeroPage::Present)? {
            present.push(span.start - mapped.address + at.offset..span.end - mapped.address + at.offset);
        }
    }
    present.sort_by_key(|span| span.start);
    let mut joined = Vec::new();
    present.into_iter().for_each(|span| spans::push(&mut joined, span));
    Ok(joined)
}
