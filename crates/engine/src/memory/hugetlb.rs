//! hugetlbfs: files that take no write(2) and know no holes.

use std::fs::File;
use std::ops::Range;

use super::pagemap::{self, ZeroPage};
use super::{Backing, Memory, file, spans};
use crate::{Error, ErrorKind, Result};

/// The error where a huge page was wanted and could not be had.
pub(super) fn no_free_page(cause: impl Into<std::io::Error>) -> Error {
    Error::os("the host has no free huge page for the guest's memory", cause).with_kind(ErrorKind::NoSpace)
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

/// The pages of `span` (file offsets) of a file that may hold data: every page of the file where they are not known.
pub(super) fn data_spans(memory: &Memory, file: &File, span: Range<u64>) -> Result<Vec<Range<u64>>> {
    let Some(pages) = mapped_pages(memory, file)? else { return file::spans_to_end(file, span) };
    let inside = |pages: Range<u64>| pages.start.max(span.start)..pages.end.min(span.end);
    Ok(pages.into_iter().map(inside).filter(|pages| !pages.is_empty()).collect())
}

/// Whether what [`data_spans`] says of the file is exact: all of its pages are there, or processes have mapped all that are.
pub(super) fn knows_its_pages(memory: &Memory, file: &File) -> Result<bool> {
    Ok(file::allocated_bytes(file)? >= file::length(file)? || mapped_pages(memory, file)?.is_some())
}

/// The file offsets that processes have mapped and present, over all regions of the file. If they are as many as the file has
/// allocated, they are all there are; else someone else put pages there, and this is `None`.
fn mapped_pages(memory: &Memory, file: &File) -> Result<Option<Vec<Range<u64>>>> {
    let identity = file::identity(file)?;
    let mut mapped = Vec::new();
    for region in memory.regions() {
        let Backing::Shared { file: at, process: Some(process) } = &region.backing else { continue };
        if file::identity(&at.file)? == identity {
            let pages = pagemap::populated(process, region.length, ZeroPage::Present)?;
            mapped.extend(pages.into_iter().map(|pages| at.offset + pages.start..at.offset + pages.end));
        }
    }
    let mapped = spans::union(mapped);
    Ok((spans::bytes(&mapped) == file::allocated_bytes(file)?).then_some(mapped))
}
