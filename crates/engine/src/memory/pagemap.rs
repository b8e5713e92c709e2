//! Which pages of a process's memory it holds itself: present in its page tables, or swapped out.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use linux_raw_sys::general::{
    PAGE_IS_HUGE, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, page_region, pm_scan_arg,
};
use rustix::io::retry_on_intr;

use super::process::last_errno;
use super::{Process, ProcessRange, spans};
use crate::{Error, PAGE, PAGE_BYTES, Result, to_usize};

/// What to do with pages that show the kernel's shared page of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ZeroPage {
    /// They count as absent, for absent pages read zero as well.
    Absent,
    /// They count as present, for absent pages show something else (a file).
    Present,
}

/// The bytes of a process's `mapped` range that it holds, from its start.
///
/// # Errors
/// `GuestGone` if the process ended or executed another program meanwhile, or whatever the kernel said.
pub(super) fn populated(mapped: &ProcessRange, length: u64, zero: ZeroPage) -> Result<Vec<Range<u64>>> {
    let ProcessRange { process, address } = mapped;
    let span = *address..address + length;
    let none_of = if zero == ZeroPage::Absent { PAGE_IS_PFNZERO } else { 0 };
    let found = match scan(process, span.clone(), HELD, none_of) {
        Err(cause) if cause.raw_os_error() == Some(libc::ENOTTY) => read(process, span),
        result => result,
    };
    // The page map of memory that is gone looks empty. If it is still there now, it was whole until here.
    process.check_alive()?;
    let found = found.map_err(|cause| {
        Error::os(format!("finding the pages of process {} at {address:#x} failed", process.pid()), cause)
    })?;
    Ok(spans::from(*address, found))
}

/// Bytes of `span` that the process has mapped by huge pages; 0 where the kernel cannot tell (before Linux 6.7).
pub(super) fn huge_bytes(process: &Process, span: Range<u64>) -> u64 {
    scan(process, span, PAGE_IS_HUGE, 0).map_or(0, |found| spans::bytes(&found))
}

/// `PAGEMAP_SCAN` of include/uapi/linux/fs.h (Linux 6.7).
const PAGEMAP_SCAN: u32 = 0xC060_6610;
const HELD: u32 = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
const REGIONS_AT_ONCE: usize = 1024;

/// By the PAGEMAP_SCAN ioctl, the pages that are in one of the categories `any_of` and in none of `none_of`; ENOTTY before
/// Linux 6.7.
fn scan(process: &Process, span: Range<u64>, any_of: u32, none_of: u32) -> io::Result<Vec<Range<u64>>> {
    let mut regions = vec![page_region { start: 0, end: 0, categories: 0 }; REGIONS_AT_ONCE];
    let mut found = Vec::new();
    let mut arguments = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: 0,
        start: span.start,
        end: span.end,
        walk_end: 0,
        vec: regions.as_mut_ptr().expose_provenance() as u64,
        vec_len: REGIONS_AT_ONCE as u64,
        max_pages: 0,
        category_inverted: none_of.into(),
        category_mask: none_of.into(),
        category_anyof_mask: any_of.into(),
        return_mask: 0,
    };
    while arguments.start < span.end {
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
        if arguments.walk_end <= arguments.start {
            return Err(io::Error::other("PAGEMAP_SCAN did not advance"));
        }
        arguments.start = arguments.walk_end;
    }
    Ok(found)
}

const ENTRY_BYTES: usize = 8;
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRIES_AT_ONCE: usize = 16 << 10;

/// By /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst), which cannot tell the shared page of zeros.
fn read(process: &Process, span: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut buffer = vec![[0; ENTRY_BYTES]; ENTRIES_AT_ONCE];
    let mut found = Vec::new();
    for start in span.clone().step_by(ENTRIES_AT_ONCE * PAGE) {
        let count = to_usize((span.end - start) / PAGE_BYTES).min(ENTRIES_AT_ONCE);
        let entries = &mut buffer[..count];
        let place = start / PAGE_BYTES * ENTRY_BYTES as u64;
        process.pagemap.read_exact_at(entries.as_flattened_mut(), place)?;
        for (entry, at) in entries.iter().zip((start..).step_by(PAGE)) {
            if u64::from_ne_bytes(*entry) & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 {
                spans::push(&mut found, at..at + PAGE_BYTES);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    #[test]
    fn a_process_that_has_ended_is_said_to_have() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let process = Arc::new(Process::open(pid).unwrap());
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let end = stack.split(['-', ' ']).nth(1).unwrap();
        let address = u64::from_str_radix(end, 16).unwrap() - PAGE_BYTES;
        let mapped = ProcessRange { process, address };
        let found = || populated(&mapped, PAGE_BYTES, ZeroPage::Present);
        assert_eq!(spans::bytes(&found().unwrap()), PAGE_BYTES);
        child.kill().unwrap();
        child.wait().unwrap();
        let error = found().unwrap_err();
        assert_eq!(error.kind, crate::ErrorKind::GuestGone);
        assert!(error.message.contains("has ended"), "{error}");
    }

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
        match scan(&process, span.clone(), HELD, 0) {
            Ok(found) => assert_eq!(found, touched),
            Err(cause) => eprintln!("SKIPPED: this kernel has no PAGEMAP_SCAN: {cause}"),
        }
        if let Ok(found) = scan(&process, span.clone(), HELD, PAGE_IS_PFNZERO) {
            assert_eq!(found, written);
        }
        let mapped = ProcessRange { process: Arc::new(process), address: start };
        let found = populated(&mapped, length, ZeroPage::Absent).unwrap();
        assert!(found == spans::from(start, written) || found == spans::from(start, touched));
        // SAFETY: the mapping is ours, and nobody refers to it any more.
        unsafe { munmap(base, bytes) }.unwrap();
    }
}
