//! hugetlbfs: files that take no write(2) and know no holes.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::{Backing, FileRange, Memory, Segment, bus_error, file, pagemap, spans};
use crate::{Error, ErrorKind, Result};

/// Our own shared mapping of a region's file, through which it is written.
#[derive(Debug)]
pub(super) struct Mapping {
    file: Arc<File>,
    base: *mut u8,
    length: usize,
    /// File offset of the first byte, a multiple of the huge page size.
    offset: u64,
    page_bytes: usize,
}

// SAFETY: the mapping is plain memory that belongs to no thread; it is only reached through `write` and by
// addresses, which callers keep free of overlaps.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing takes a reference to the mapped bytes.
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
        Ok(Self { file: Arc::clone(&at.file), base: base.cast(), length, offset, page_bytes })
    }

    /// Copies every segment to its file offset.
    ///
    /// # Safety
    /// Every segment's buffer must be valid for reads of its length, and nobody may write to it meanwhile.
    pub unsafe fn write(&self, segments: Vec<Segment>) -> Result<()> {
        let places = segments
            .iter()
            .map(|segment| self.place(segment.at, segment.length))
            .collect::<Result<Vec<_>>>()?;
        for pages in self.pages(&places) {
            self.populate(&pages)?;
        }
        for (segment, place) in segments.iter().zip(places) {
            // SAFETY: `place` was checked to lie within the mapping.
            let target = unsafe { self.base.add(place.start) };
            let (source, length) = (segment.buffer.cast_const(), segment.length);
            // SAFETY: the buffer is valid by the caller's promise and no part of this mapping, whose addresses are only
            // given out for the kernel to write other pages; a page that has gone since it was made present is watched for.
            let copy = || unsafe { std::ptr::copy_nonoverlapping(source, target, length) };
            let addresses = target.addr()..target.addr() + length;
            bus_error::watched(addresses, self.page_bytes, copy).map_err(|()| {
                Error::new(ErrorKind::Io, "a page of the guest's memory was taken away while it was restored")
            })?;
        }
        Ok(())
    }

    /// Makes the pages of the file offsets `span` present; returns the address of the first byte, to be used as long as
    /// the mapping lives.
    pub fn populated(&self, span: Range<u64>) -> Result<*mut u8> {
        let length = usize::try_from(span.end - span.start).unwrap_or(usize::MAX);
        let place = self.place(span.start, length)?;
        let start = place.start;
        for pages in self.pages(&[place]) {
            self.populate(&pages)?;
        }
        // SAFETY: the place was checked to lie within the mapping.
        Ok(unsafe { self.base.add(start) })
    }

    fn place(&self, at: u64, length: usize) -> Result<Range<usize>> {
        let start = at.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok());
        start
            .and_then(|start| Some(start..start.checked_add(length)?))
            .filter(|place| place.end <= self.length)
            .ok_or_else(|| Error::new(ErrorKind::Usage, "an access lies outside of its hugetlbfs mapping"))
    }

    /// The huge pages of `places`, from the start of the mapping; those of successive places that touch are one run, as
    /// each run costs a system call.
    fn pages(&self, places: &[Range<usize>]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for place in places {
            let start = place.start - place.start % self.page_bytes;
            let end = place.end.next_multiple_of(self.page_bytes).min(self.length);
            match runs.last_mut() {
                Some(last) if (last.start..=last.end).contains(&start) => last.end = last.end.max(end),
                _ => runs.push(start..end),
            }
        }
        runs
    }

    /// Makes whole huge pages present: where the host has none left, this fails, but a plain write would end the
    /// process by SIGBUS.
    fn populate(&self, pages: &Range<usize>) -> Result<()> {
        // SAFETY: the pages lie within the mapping.
        let first = unsafe { self.base.add(pages.start) };
        // SAFETY: populating changes no bytes, and the range is mapped by us.
        let call = || unsafe { madvise(first.cast(), pages.len(), Advice::LinuxPopulateWrite) };
        match retry_on_intr(call) {
            Ok(()) => Ok(()),
            Err(errno) => Err(self.failure(pages, errno)),
        }
    }

    fn failure(&self, pages: &Range<usize>, errno: Errno) -> Error {
        let at = self.offset + pages.start as u64;
        let end = self.offset + pages.end as u64;
        let other = |what| Error::os(format!("{what}, in a hugetlbfs file at offset {at}"), errno);
        match errno {
            Errno::HWPOISON => other("the guest's memory has a hardware error"),
            Errno::FAULT if file::length(&self.file).is_ok_and(|length| length < end) => {
                other("the guest's memory has become shorter")
            }
            Errno::NOMEM | Errno::FAULT => no_free_page(errno),
            _ => other("making the guest's memory present failed"),
        }
    }
}

fn no_free_page(cause: impl Into<std::io::Error>) -> Error {
    Error::os("the host has no free huge page for the guest's memory", cause).with_kind(ErrorKind::NoSpace)
}

/// Learns whether this kernel can write to shared hugetlbfs memory as [`Mapping`] does.
pub(super) fn check_writable() -> Result<()> {
    // An unknown advice is refused before the range is looked at.
    // SAFETY: the range is empty.
    let known = unsafe { madvise(std::ptr::null_mut(), 0, Advice::LinuxPopulateWrite) };
    known.map_err(|errno| {
        Error::os("writing to hugetlbfs needs MADV_POPULATE_WRITE, which came with Linux 5.14", errno)
            .with_kind(ErrorKind::HostUnsupported)
    })
}

/// Why a write to private hugetlbfs memory failed: writing to another process's memory says the same of any page that
/// cannot be had (EFAULT, or EIO by /proc/PID/mem), so the host's counters tell whether it ran out. A limit of the
/// guest's cgroup or of a NUMA node is not seen there, and keeps the plain words.
pub(super) fn private_write_failure(error: Error, page_bytes: u64) -> Error {
    let unreachable = |cause: &std::io::Error| matches!(cause.raw_os_error(), Some(libc::EFAULT | libc::EIO));
    match error.cause {
        Some(cause) if unreachable(&cause) && free_pages(page_bytes) == Some(0) => no_free_page(cause),
        cause => Error { cause, ..error },
    }
}

/// Huge pages that the host has free and not reserved (Documentation/admin-guide/mm/hugetlbpage.rst).
fn free_pages(page_bytes: u64) -> Option<u64> {
    let counter = |name| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", page_bytes >> 10);
        std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    };
    Some(counter("free_hugepages")?.saturating_sub(counter("resv_hugepages")?))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping, and whoever had an address was told that it lives as long.
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

/// Whether what [`data_spans`] says of the file is exact: all of its pages are there, or the process has mapped all that are.
pub(super) fn knows_its_pages(memory: &Memory, file: &File) -> Result<bool> {
    let allocated = file::allocated_bytes(file)?;
    let present = || Ok(present_spans(memory, file)?.iter().map(|span| span.end - span.start).sum::<u64>());
    Ok(allocated >= file::length(file)? || present()? == allocated)
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
