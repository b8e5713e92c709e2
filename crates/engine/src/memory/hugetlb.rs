//! hugetlbfs: files that take no write(2) and know no holes.

use std::fs::File;
use std::ops::Range;

use rustix::mm::{Advice, madvise};

use super::{Backing, Memory, file, pagemap, spans};
use crate::{Error, ErrorKind, Result};

/// The error where a huge page was wanted and could not be had.
pub(super) fn no_free_page(cause: impl Into<std::io::Error>) -> Error {
    Error::os("the host has no free huge page for the guest's memory", cause).with_kind(ErrorKind::NoSpace)
}

/// Learns whether this kernel can write to shared hugetlbfs memory as [`Mapping`](super::mapping::Mapping) does.
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
    Some(counter(page_bytes, "free_hugepages")?.saturating_sub(counter(page_bytes, "resv_hugepages")?))
}

/// The most that a guest may still get in huge pages: reserved ones are counted, as they may be for this very guest, and those
/// that the host makes when they are asked for.
pub(crate) fn obtainable_bytes(page_bytes: u64) -> Option<u64> {
    let counter = |name| counter(page_bytes, name);
    let surplus = counter("nr_overcommit_hugepages")?.saturating_sub(counter("surplus_hugepages")?);
    Some(counter("free_hugepages")?.saturating_add(surplus).saturating_mul(page_bytes))
}

fn counter(page_bytes: u64, name: &str) -> Option<u64> {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", page_bytes >> 10);
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
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
