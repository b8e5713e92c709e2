//! Which pages of a process's memory it holds itself: present in its page tables, or swapped out.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::io::retry_on_intr;

use super::process::last_errno;
use super::{Process, spans};
use crate::{Error, PAGE_BYTES, Result};

/// What to do with pages that show the kernel's shared page of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ZeroPage {
    /// They count as absent, for absent pages read zero as well.
    Absent,
    /// They count as present, for absent pages show something else (a file).
    Present,
}

/// The bytes of `span` (page-aligned addresses) that the process holds.
///
/// # Errors
/// `GuestGone` if the process ended or executed another program meanwhile, or whatever the kernel said.
pub(super) fn populated(process: &Process, span: Range<u64>, zero: ZeroPage) -> Result<Vec<Range<u64>>> {
    let failure = |cause| {
        Error::os(
            format!("finding the pages of process {} at {:#x} failed", process.pid(), span.start),
            cause,
        )
    };
    let held = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
    let none_of = if zero == ZeroPage::Absent { PAGE_IS_PFNZERO } else { 0 };
    let found = match scan(process, span.clone(), Wanted { any_of: held, none_of }) {
        Err(cause) if cause.raw_os_error() == Some(libc::ENOTTY) => read(process, span.clone()),
        result => result,
    };
    // The page map of memory that is gone looks empty. If it is still there now, it was whole until here.
    process.check_alive()?;
    found.map_err(failure)
}

/// Bytes of `span` that the process has mapped by huge pages; 0 where the kernel cannot tell (before Linux 6.7).
pub(super) fn huge_bytes(process: &Process, span: Range<u64>) -> u64 {
    let huge = Wanted { any_of: PAGE_IS_HUGE, none_of: 0 };
    scan(process, span, huge).map_or(0, |found| found.iter().map(|span| span.end - span.start).sum())
}

/// `struct pm_scan_arg` of include/uapi/linux/fs.h (Linux 6.7).
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of the same file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGEMAP_SCAN: u32 = 0xC060_6610;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;
const REGIONS_AT_ONCE: usize = 1024;

/// Categories of pages.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// A page is in one of these,
    any_of: u64,
    /// and in none of these.
    none_of: u64,
}

/// By the PAGEMAP_SCAN ioctl; ENOTTY before Linux 6.7.
fn scan(process: &Process, span: Range<u64>, wanted: Wanted) -> io::Result<Vec<Range<u64>>> {
    let mut regions = vec![PageRegion::default(); REGIONS_AT_ONCE];
    let mut found = Vec::new();
    let mut start = span.start;
    while start < span.end {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            start,
            end: span.end,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: REGIONS_AT_ONCE as u64,
            category_inverted: wanted.none_of,
            category_mask: wanted.none_of,
            category_anyof_mask: wanted.any_of,
            ..ScanArguments::default()
        };
        let fd = process.pagemap.as_raw_fd();
        let count = retry_on_intr(|| {
            // SAFETY: the arguments have the layout that the ioctl expects and name a buffer of `vec_len` regions,
            // which lives until after the call.
            let count = unsafe { libc::ioctl(fd, PAGEMAP_SCAN as libc::Ioctl, &raw mut arguments) };
            usize::try_from(count).map_err(|_| last_errno())
        })?;
        for region in regions.iter().take(count) {
            spans::push(&mut found, region.start..region.end);
        }
        if arguments.walk_end <= start {
            return Err(io::Error::other("PAGEMAP_SCAN did not advance"));
        }
        start = arguments.walk_end;
    }
    Ok(found)
}

const ENTRY_BYTES: usize = 8;
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRIES_AT_ONCE: u64 = 16 << 10;

/// By /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst), which cannot tell the shared page of zeros.
fn read(process: &Process, span: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut buffer = Vec::new();
    let mut found = Vec::new();
    let mut page = span.start / PAGE_BYTES;
    let end = span.end / PAGE_BYTES;
    while page < end {
        let count = (end - page).min(ENTRIES_AT_ONCE);
        buffer.resize(usize::try_from(count).unwrap_or(0) * ENTRY_BYTES, 0);
        process.pagemap.read_exact_at(&mut buffer, page * ENTRY_BYTES as u64)?;
        let (entries, _) = buffer.as_chunks::<ENTRY_BYTES>();
        for entry in entries {
            if u64::from_ne_bytes(*entry) & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 {
                spans::push(&mut found, page * PAGE_BYTES..(page + 1) * PAGE_BYTES);
            }
            page += 1;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    /// More regions than one ioctl returns; pages that were only read show the shared page of zeros.
    #[test]
    fn both_ways_find_the_pages_that_were_touched() {
        let pages = 3 * REGIONS_AT_ONCE as u64;
        let length = pages * PAGE_BYTES;
        let bytes = usize::try_from(length).unwrap();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }.unwrap();
        // SAFETY: the range is the mapping that was just made.
        unsafe { madvise(base, bytes, Advice::LinuxNoHugepage) }.unwrap();
        let start = base as u64;
        let page = |index: u64| start + index * PAGE_BYTES..start + (index + 1) * PAGE_BYTES;
        let (mut written, mut touched) = (Vec::new(), Vec::new());
        for index in (0..pages).filter(|index| index % 2 == 0) {
            let byte = base.cast::<u8>().wrapping_add(usize::try_from(index * PAGE_BYTES).unwrap());
            if index % 8 == 0 {
                // SAFETY: the byte lies within the mapping, which nobody else uses.
                assert_eq!(unsafe { byte.read_volatile() }, 0);
            } else {
                // SAFETY: as above.
                unsafe { byte.write_volatile(0) };
                spans::push(&mut written, page(index));
            }
            spans::push(&mut touched, page(index));
        }
        let process = Process::open(std::process::id().cast_signed()).unwrap();
        let span = start..start + length;
        assert_eq!(read(&process, span.clone()).unwrap(), touched);
        let held = Wanted { any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED, none_of: 0 };
        match scan(&process, span.clone(), held) {
            Ok(found) => assert_eq!(found, touched),
            Err(cause) => eprintln!("SKIPPED: this kernel has no PAGEMAP_SCAN: {cause}"),
        }
        if let Ok(found) = scan(&process, span.clone(), Wanted { none_of: PAGE_IS_PFNZERO, ..held }) {
            assert_eq!(found, written);
        }
        let found = populated(&process, span, ZeroPage::Absent).unwrap();
        assert!(found == written || found == touched);
        // SAFETY: the mapping is ours, and nobody refers to it any more.
        unsafe { munmap(base, bytes) }.unwrap();
    }
}
