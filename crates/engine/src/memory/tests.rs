//! Every kind of memory that this host has, in this very process: found, read, written and cleared.
#![allow(clippy::cast_possible_truncation, reason = "the memory here is small")]

use std::fs::File;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap};

#[path = "../../tests/support/huge_pages.rs"]
mod huge_pages;

use super::region::BY_PROCESS;
use super::*;
use crate::PAGE_BYTES;
use crate::bitmap::{PageBitmap, PageRun};
use crate::transfer::{self, Control};
use huge_pages::{HUGE_PAGE_BYTES, HugePages};

const PAGES: u64 = 64;
const PAGE: usize = 4096;

/// A mapping that stands for a guest's RAM, and what it is expected to hold.
struct Guest {
    base: *mut u8,
    model: Vec<u8>,
    page_bytes: u64,
    file: Option<File>,
    private: bool,
    /// Whether shared memory is written through this process's mapping.
    by_process: bool,
}

impl Guest {
    fn anonymous() -> Self {
        let length = (PAGES * PAGE_BYTES) as usize;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), length, protection, flags) }.unwrap();
        Self::mapped(base.cast(), length, PAGE_BYTES, None, true)
    }

    /// Maps a file whose `data` pages were filled.
    fn of_file(file: File, page_bytes: u64, data: &[u64], private: bool) -> Self {
        let length = (PAGES * page_bytes) as usize;
        file.set_len(length as u64).unwrap();
        let mut guest = Self::mapped(map(&file, length, private), length, page_bytes, Some(file), private);
        // Written by another mapping, as hugetlbfs takes no write(2), and so that none is present in the guest's.
        let writer = map(guest.file.as_ref().unwrap(), length, false);
        for &page in data {
            guest.fill(writer, page, 0x11);
        }
        // SAFETY: the mapping was made above, and nobody refers to it any more.
        unsafe { munmap(writer.cast(), length) }.unwrap();
        guest
    }

    fn mapped(base: *mut u8, length: usize, page_bytes: u64, file: Option<File>, private: bool) -> Self {
        if page_bytes == PAGE_BYTES {
            // Transparent huge pages would make pages present that were not touched.
            // SAFETY: the range is the mapping that was just made.
            unsafe { madvise(base.cast(), length, Advice::LinuxNoHugepage) }.unwrap();
        }
        Self { base, model: vec![0; length], page_bytes, file, private, by_process: false }
    }

    /// Touches a page as the guest would.
    fn touch(&mut self, page: u64, value: u8) {
        self.fill(self.base, page, value);
    }

    /// Fills all of a page of `page_bytes` bytes through `mapping`, and the model.
    fn fill(&mut self, mapping: *mut u8, page: u64, value: u8) {
        let range = (page * self.page_bytes) as usize..((page + 1) * self.page_bytes) as usize;
        // SAFETY: the page lies within the mapping, which is as long as the model.
        unsafe { std::ptr::write_bytes(mapping.wrapping_add(range.start), value, range.len()) };
        self.model[range].fill(value);
    }

    fn backing(&self) -> Backing {
        let process = ProcessRange { process: me(), address: self.base as u64 };
        let Some(file) = &self.file else {
            return Backing::Private { process, file: None };
        };
        let file = FileRange { file: Arc::new(file.try_clone().unwrap()), path: None, offset: 0 };
        if self.private {
            return Backing::Private { process, file: Some(file) };
        }
        let process = (self.by_process || self.page_bytes > PAGE_BYTES).then_some(process);
        Backing::Shared { file, process }
    }

    fn region(&self, length: u64) -> Region {
        let (backing, page_bytes) = (self.backing(), self.page_bytes);
        Region { block: 0, offset: 0, length, backing, page_bytes, writable: true }
    }

    fn memory(&self) -> Memory {
        let length = self.model.len() as u64;
        Memory::new(vec![length], vec![self.region(length)]).unwrap()
    }

    /// What the guest would see now.
    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is that long, and nothing writes to it while a test compares it.
        unsafe { std::slice::from_raw_parts(self.base, self.model.len()) }
    }

    fn allocated(&self) -> u64 {
        let mapped = ProcessRange { process: me(), address: self.base as u64 };
        let length = self.model.len() as u64;
        let held = pagemap::populated(&mapped, length, pagemap::ZeroPage::Present).unwrap();
        let file = self.file.as_ref().map_or(0, |file| {
            // A file system on disk may allocate what is behind a dirty page whenever it writes it back.
            file.sync_all().unwrap();
            file::allocated_bytes(file).unwrap()
        });
        file + spans::bytes(&held)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: the mapping is the guest's own, and no reference to it outlives the guest.
        unsafe { munmap(self.base.cast(), self.model.len()) }.unwrap();
    }
}

fn map(file: &File, length: usize, private: bool) -> *mut u8 {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::NORESERVE | if private { MapFlags::PRIVATE } else { MapFlags::SHARED };
    // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
    unsafe { mmap(std::ptr::null_mut(), length, protection, flags, file, 0) }.unwrap().cast()
}

fn me() -> Arc<Process> {
    Arc::new(Process::open(std::process::id().cast_signed()).unwrap())
}

/// Reads all extents; everything else is zero. Checks that they are ascending and disjoint.
fn scan_and_read(memory: &Memory, block: usize) -> (Vec<u8>, u64) {
    let mut content = vec![0; memory.blocks()[block] as usize];
    let (mut end, mut total) = (0, 0);
    for Extent { offset, length, source } in memory.scan(block).unwrap() {
        assert!(offset >= end && length > 0 && offset % PAGE_BYTES == 0 && length % PAGE_BYTES == 0);
        (end, total) = (offset + length, total + length);
        let piece = Piece { offset, length: length as usize, buffer_offset: offset as usize };
        // SAFETY: the extent lies within the block, which `content` is as long as.
        unsafe { memory.read(source, &[piece], content.as_mut_ptr()) }.unwrap();
    }
    (content, total)
}

/// What a test does to memory: pages that its file holds, pages that the guest touched (some with zeros), pages that
/// the bitmap says hold data, and pieces to write.
#[derive(Debug, Clone)]
struct Case {
    in_file: Vec<u64>,
    touched: Vec<(u64, u8)>,
    set: Vec<u64>,
    written: Vec<(u64, u64)>,
}

fn case() -> impl Strategy<Value = Case> {
    let pages = || prop::collection::vec(0..PAGES, 0..40);
    let touched = prop::collection::vec((0..PAGES, prop_oneof![Just(0), 1_u8..]), 0..30);
    let written = prop::collection::vec((0..PAGES, 1..20_u64), 0..8);
    (pages(), touched, pages(), written).prop_map(|(in_file, touched, set, written)| Case {
        in_file,
        touched,
        set,
        written,
    })
}

fn check(mut guest: Guest, case: &Case) {
    for &(page, value) in &case.touched {
        guest.touch(page, value);
    }
    let memory = guest.memory();
    let allocated = guest.allocated();
    let (content, total) = scan_and_read(&memory, 0);
    assert!(content == guest.model, "what was read is not what the memory holds");
    assert_eq!(guest.allocated(), allocated, "reading allocated memory in the guest");
    let mut used: Vec<u64> = case.touched.iter().map(|(page, _)| *page).collect();
    if guest.file.is_some() {
        used.extend(&case.in_file);
    }
    used.sort_unstable();
    used.dedup();
    if guest.page_bytes == PAGE_BYTES {
        assert_eq!(total, used.len() as u64 * PAGE_BYTES, "the extents are not the pages in use");
    }
    check_clear(&mut guest, &memory, &case.set);
    check_write(&mut guest, &memory, &case.written);
}

/// Clears one block by its bitmap and leaves all others as they are.
fn clear(memory: &Memory, block: usize, bitmap: &PageBitmap) -> u64 {
    let kept = |(index, length): (usize, &u64)| {
        let all = PageRun { first: 0, count: length / PAGE_BYTES };
        let kept = PageBitmap::new(all.count);
        if index == block {
            bitmap.runs(all, true).for_each(|run| kept.set(run))
        } else {
            kept.set(all)
        }
        kept
    };
    let bitmaps: Vec<PageBitmap> = memory.blocks().iter().enumerate().map(kept).collect();
    transfer::clear(memory, &bitmaps, 2, &Control::default()).unwrap()
}

fn check_clear(guest: &mut Guest, memory: &Memory, set: &[u64]) {
    let small_pages = guest.model.len() / PAGE;
    let bitmap = PageBitmap::new(small_pages as u64);
    set.iter().for_each(|page| bitmap.set(PageRun { first: *page, count: 1 }));
    let allocated = guest.allocated();
    let cleared = clear(memory, 0, &bitmap);
    let mut dirty = 0;
    for (page, bytes) in (0..).zip(guest.model.chunks_mut(PAGE)).filter(|(page, _)| !set.contains(page)) {
        dirty += u64::from(bytes.iter().any(|byte| *byte != 0)) * PAGE_BYTES;
        bytes.fill(0);
        assert!(page < small_pages as u64);
    }
    assert_eq!(cleared, dirty);
    // A write by the process's mapping maps the page there.
    let is_mapped = guest.private || guest.by_process;
    assert!(is_mapped || guest.allocated() == allocated, "clearing changed what is allocated");
    assert!(guest.bytes() == guest.model, "clearing went wrong");
}

fn check_write(guest: &mut Guest, memory: &Memory, written: &[(u64, u64)]) {
    let data: Vec<u8> = (0..20 * PAGE).map(|at| (at / 7 % 251) as u8).collect();
    let mut pieces = Vec::new();
    for &(page, count) in written {
        let range = page as usize * PAGE..guest.model.len().min((page + count) as usize * PAGE);
        guest.model[range.clone()].copy_from_slice(&data[..range.len()]);
        pieces.push(Piece { offset: range.start as u64, length: range.len(), buffer_offset: 0 });
    }
    // SAFETY: no piece is longer than the data, which nobody writes to.
    unsafe { memory.write(0, &pieces, data.as_ptr()) }.unwrap();
    assert!(guest.bytes() == guest.model, "writing went wrong");
    assert!(scan_and_read(memory, 0).0 == guest.model, "what was written is not read back");
}

fn memfd(flags: MemfdFlags) -> File {
    File::from(memfd_create("mapram-test", flags | MemfdFlags::CLOEXEC).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn anonymous_memory(case in case()) {
        check(Guest::anonymous(), &case);
    }

    #[test]
    fn memfd_memory(case in case(), private: bool, by_process: bool) {
        let mut guest = Guest::of_file(memfd(MemfdFlags::empty()), PAGE_BYTES, &case.in_file, private);
        guest.by_process = by_process;
        check(guest, &case);
    }

    #[test]
    fn tmpfs_memory(case in case(), private: bool) {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        check(Guest::of_file(file, PAGE_BYTES, &case.in_file, private), &case);
    }

    #[test]
    fn disk_memory(case in case(), private: bool) {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        check(Guest::of_file(file, PAGE_BYTES, &case.in_file, private), &case);
    }
}

/// One test, as all of its parts share the host's huge pages.
#[test]
fn hugetlb_memory() {
    let Some(_pages) = HugePages::reserve(PAGES * 2 + 8) else {
        return;
    };
    let file = || memfd(MemfdFlags::HUGETLB);
    let case = Case {
        in_file: vec![1, 2, 17, 63],
        touched: vec![(2, 7), (5, 9), (6, 0), (62, 1)],
        set: vec![0, 512, 513, 2 * 512 + 7, 5 * 512, 63 * 512 + 511],
        written: vec![(0, 3), (700, 19), (3000, 1)],
    };
    for private in [false, true] {
        // Pages that only another mapping holds, then none but the guest's own.
        check(Guest::of_file(file(), HUGE_PAGE_BYTES, &case.in_file, private), &case);
        check(
            Guest::of_file(file(), HUGE_PAGE_BYTES, &[], private),
            &Case { in_file: vec![], ..case.clone() },
        );
    }
    hugetlb_extents_are_the_pages_in_use();
    what_is_mapped_for_reading_only_has_no_place_to_read_to();
    too_few_huge_pages_are_an_error();
    too_few_huge_pages_are_found_out_first();
}

fn hugetlb_extents_are_the_pages_in_use() {
    for private in [false, true] {
        let mut guest = Guest::of_file(memfd(MemfdFlags::HUGETLB), HUGE_PAGE_BYTES, &[], private);
        guest.touch(3, 1);
        guest.touch(4, 1);
        let extents = guest.memory().scan(0).unwrap();
        let spans: Vec<_> = extents.iter().map(|extent| (extent.offset, extent.length)).collect();
        assert_eq!(spans, [(3 * HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES)]);
    }
}

fn what_is_mapped_for_reading_only_has_no_place_to_read_to() {
    let guest = Guest::of_file(memfd(MemfdFlags::HUGETLB), HUGE_PAGE_BYTES, &[1], false);
    let length = guest.model.len() as u64;
    for writable in [true, false] {
        let memory = Memory::new(vec![length], vec![Region { writable, ..guest.region(length) }]).unwrap();
        let address = memory.direct_address(0, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES);
        match writable {
            true => assert!(address.unwrap().is_some()),
            false => assert_eq!(address.unwrap_err().kind, crate::ErrorKind::Usage),
        }
    }
}

fn too_few_huge_pages_are_an_error() {
    let guests = [false, true]
        .map(|private| Guest::of_file(memfd(MemfdFlags::HUGETLB), HUGE_PAGE_BYTES, &[], private));
    let free = HugePages::free();
    let hoard = memfd(MemfdFlags::HUGETLB);
    fallocate(&hoard, FallocateFlags::empty(), 0, free * HUGE_PAGE_BYTES).unwrap();
    let piece = Piece { offset: 0, length: PAGE, buffer_offset: 0 };
    // SAFETY: the piece is as long as the page that it is written from.
    let write = |memory: &Memory| unsafe { memory.write(0, &[piece], [1_u8; PAGE].as_ptr()) };
    let memories = [guests[0].memory(), guests[1].memory()];
    for memory in &memories {
        memory.check_writable().unwrap();
        let error = write(memory).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    }
    let error = memories[0].direct_address(0, 0, PAGE_BYTES).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    // A file that has become too short is another matter.
    drop(hoard);
    guests[0].file.as_ref().unwrap().set_len(0).unwrap();
    let error = write(&memories[0]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io, "{error}");
    assert!(error.message.contains("taken away"), "{error}");
}

fn too_few_huge_pages_are_found_out_first() {
    let mut guest = Guest::of_file(memfd(MemfdFlags::HUGETLB), HUGE_PAGE_BYTES, &[], false);
    let memory = guest.memory();
    guest.touch(1, 1);
    let free = HugePages::free();
    let hoard = memfd(MemfdFlags::HUGETLB);
    fallocate(&hoard, FallocateFlags::empty(), 0, (free - 2) * HUGE_PAGE_BYTES).unwrap();
    let small_pages = HUGE_PAGE_BYTES / PAGE_BYTES;
    let bitmap = PageBitmap::new(PAGES * small_pages);
    // The end of one that is not there, one that is, and the start of another.
    bitmap.set(PageRun { first: small_pages - 1, count: small_pages + 2 });
    transfer::require_room(&memory, std::slice::from_ref(&bitmap)).unwrap();
    bitmap.set(PageRun { first: (PAGES - 1) * small_pages, count: 1 });
    let room = || transfer::require_room(&memory, std::slice::from_ref(&bitmap));
    let error = room().unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    // Pages that are reserved for somebody may be for this guest.
    drop(hoard);
    let length = (free * HUGE_PAGE_BYTES) as usize;
    let (file, flags) = (memfd(MemfdFlags::HUGETLB), MapFlags::SHARED);
    // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
    let reserved = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, flags, &file, 0) };
    room().unwrap();
    // SAFETY: nobody refers to the mapping that was made above.
    unsafe { munmap(reserved.unwrap(), length) }.unwrap();
}

/// A block made of anonymous memory, a shared file and a private one: pieces cross from one into the next.
#[test]
fn a_block_spans_regions_of_several_kinds() {
    let mut guests = [
        Guest::anonymous(),
        Guest::of_file(memfd(MemfdFlags::empty()), PAGE_BYTES, &[0, 1, 63], false),
        Guest::of_file(memfd(MemfdFlags::empty()), PAGE_BYTES, &[0, 2], true),
    ];
    guests[0].touch(63, 3);
    guests[2].touch(2, 4);
    let part = PAGES * PAGE_BYTES;
    let region = |(index, guest): (usize, &Guest)| Region {
        block: 1,
        offset: index as u64 * part,
        length: part,
        backing: guest.backing(),
        page_bytes: PAGE_BYTES,
        writable: true,
    };
    let regions: Vec<_> = guests.iter().enumerate().map(region).rev().collect();
    let memory = Memory::new(vec![0, 3 * part], regions).unwrap();
    let model: Vec<u8> = guests.iter().flat_map(|guest| guest.model.clone()).collect();
    assert!(scan_and_read(&memory, 1).0 == model);

    let data: Vec<u8> = (0..2 * part).map(|at| (at % 251) as u8).collect();
    let piece = Piece { offset: part / 2, length: data.len(), buffer_offset: 0 };
    // SAFETY: the piece is as long as the data.
    unsafe { memory.write(1, &[piece], data.as_ptr()) }.unwrap();
    let half = (part / 2) as usize;
    assert!(guests[0].bytes()[half..] == data[..half]);
    assert!(guests[1].bytes() == &data[half..3 * half]);
    assert!(guests[2].bytes()[..half] == data[3 * half..]);

    let bitmap = PageBitmap::new(3 * PAGES);
    bitmap.set(PageRun { first: PAGES - 1, count: 2 });
    clear(&memory, 1, &bitmap);
    let last = guests[0].bytes().len() - PAGE;
    assert!(guests[0].bytes()[..last].iter().all(|byte| *byte == 0));
    assert!(guests[0].bytes()[last..] == data[half - PAGE..half]);
    assert!(guests[1].bytes()[..PAGE] == data[half..half + PAGE]);
    assert!(guests[1].bytes()[PAGE..].iter().all(|byte| *byte == 0));
    assert!(guests[2].bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn what_lies_behind_the_end_of_a_file_reads_zero() {
    for private in [false, true] {
        let guest = Guest::of_file(memfd(MemfdFlags::empty()), PAGE_BYTES, &[0, 1, 2], private);
        guest.file.as_ref().unwrap().set_len(PAGE_BYTES + 5).unwrap();
        let (content, total) = scan_and_read(&guest.memory(), 0);
        assert_eq!(total, 2 * PAGE_BYTES);
        assert!(content[..PAGE + 5].iter().all(|byte| *byte == 0x11));
        assert!(content[PAGE + 5..].iter().all(|byte| *byte == 0));
        assert_eq!(clear(&guest.memory(), 0, &PageBitmap::new(PAGES)), 2 * PAGE_BYTES);
    }
}

#[test]
fn a_file_that_is_cut_after_the_scan_is_no_zeros() {
    for private in [false, true] {
        let guest = Guest::of_file(memfd(MemfdFlags::empty()), PAGE_BYTES, &[0, 1, 2], private);
        let memory = guest.memory();
        for left in [0, PAGE_BYTES, PAGE_BYTES + 5] {
            guest.file.as_ref().unwrap().set_len(left).unwrap();
            let mut content = vec![0; 3 * PAGE];
            let piece = Piece { offset: 0, length: content.len(), buffer_offset: 0 };
            // SAFETY: the buffer is as long as the piece.
            let read = unsafe { memory.read(BY_FILE, &[piece], content.as_mut_ptr()) };
            let error = read.unwrap_err();
            assert_eq!((error.kind, error.offset), (ErrorKind::Io, Some(left)));
            assert!(error.message.contains("taken away"), "{error}");
        }
    }
}

#[test]
fn a_file_that_was_cut_is_not_made_longer_again() {
    for by_process in [false, true] {
        let mut guest = Guest::of_file(memfd(MemfdFlags::empty()), PAGE_BYTES, &[], false);
        guest.by_process = by_process;
        let (memory, file) = (guest.memory(), guest.file.as_ref().unwrap());
        let piece = Piece { offset: (PAGES - 1) * PAGE_BYTES, length: PAGE, buffer_offset: 0 };
        // SAFETY: the piece is as long as the page that it is written from.
        let write = || unsafe { memory.write(0, &[piece], [1_u8; PAGE].as_ptr()) };
        write().unwrap();
        file.set_len(PAGE_BYTES).unwrap();
        for outcome in [write(), memory.check_not_cut()] {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Io, "{error}");
            assert!(error.message.contains("become shorter"), "{error}");
        }
        assert_eq!(file::length(file).unwrap(), PAGE_BYTES);
    }
}

/// Memory may be longer than its file from the start, and a file longer than the memory in it.
#[test]
fn only_what_a_file_had_of_the_memory_must_stay() {
    let guest = Guest::of_file(memfd(MemfdFlags::empty()), PAGE_BYTES, &[], false);
    let file = guest.file.as_ref().unwrap();
    let piece = Piece { offset: 5 * PAGE_BYTES, length: PAGE, buffer_offset: 0 };
    for (before, after) in [(5, 5), (2 * PAGES * PAGE_BYTES, PAGES * PAGE_BYTES)] {
        file.set_len(before).unwrap();
        let memory = guest.memory();
        file.set_len(after).unwrap();
        // SAFETY: the piece is as long as the page that it is written from.
        unsafe { memory.write(0, &[piece], [1_u8; PAGE].as_ptr()) }.unwrap();
        memory.check_not_cut().unwrap();
    }
}

/// They may be protected after the memory was opened, so it is the kernel that has the last word.
#[test]
fn pages_that_the_guest_itself_may_not_write_are_read_only() {
    let mut guest = Guest::anonymous();
    (0..4).for_each(|page| guest.touch(page, 5));
    // SAFETY: the pages are the guest's, and nobody refers to them.
    unsafe { mprotect(guest.base.cast(), 2 * PAGE, rustix::mm::MprotectFlags::READ) }.unwrap();
    let memory = guest.memory();
    assert!(scan_and_read(&memory, 0).0 == guest.model);
    let piece = Piece { offset: PAGE_BYTES, length: 2 * PAGE, buffer_offset: 0 };
    // SAFETY: the piece is as long as the data.
    unsafe { memory.write(0, &[piece], [9_u8; 2 * PAGE].as_ptr()) }.unwrap_err();
    assert!(guest.bytes() == guest.model, "a page that is mapped for reading only was written");
}

/// More pieces than one system call takes, some of them out of order.
#[test]
fn thousands_of_pieces_are_read_and_written() {
    let mut guest = Guest::anonymous();
    guest.model.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 253) as u8);
    let small = 64;
    let count = guest.model.len() / small;
    let pieces: Vec<_> = (0..count)
        .map(|index| index * 31 % count * small)
        .map(|at| Piece { offset: at as u64, length: small, buffer_offset: at })
        .collect();
    let memory = guest.memory();
    // SAFETY: the pieces are parts of the model, which is as long as the block.
    unsafe { memory.write(0, &pieces, guest.model.as_ptr()) }.unwrap();
    assert!(guest.bytes() == guest.model);
    let mut content = vec![0; guest.model.len()];
    // SAFETY: as above, for a buffer of the same length.
    unsafe { memory.read(BY_PROCESS, &pieces, content.as_mut_ptr()) }.unwrap();
    assert!(content == guest.model);
}

#[test]
fn pieces_and_bitmaps_that_do_not_fit_are_refused() {
    let memory = Guest::anonymous().memory();
    let mut byte = 0_u8;
    for (offset, length) in
        [(PAGES * PAGE_BYTES, 1), (PAGES * PAGE_BYTES - 1, 2), (u64::MAX, 1), (0, usize::MAX)]
    {
        let piece = Piece { offset, length, buffer_offset: 0 };
        // SAFETY: nothing is copied, as the piece is refused.
        let read = unsafe { memory.read(BY_PROCESS, &[piece], &raw mut byte) };
        assert_eq!(read.unwrap_err().kind, ErrorKind::Usage);
        // SAFETY: as above.
        let written = unsafe { memory.write(0, &[piece], &raw const byte) };
        assert_eq!(written.unwrap_err().kind, ErrorKind::Usage);
    }
    assert_eq!(memory.source_block(BY_PROCESS), Some(0));
    for source in [1, 2, 3, u32::MAX] {
        assert_eq!(memory.source_block(source), None);
        // SAFETY: there are no pieces.
        assert_eq!(unsafe { memory.read(source, &[], &raw mut byte) }.unwrap_err().kind, ErrorKind::Usage);
    }
}

#[test]
fn regions_must_cover_the_blocks_exactly() {
    let guest = Guest::anonymous();
    let region = |block, offset, length| Region {
        block,
        offset: offset * PAGE_BYTES,
        length: length * PAGE_BYTES,
        backing: guest.backing(),
        page_bytes: PAGE_BYTES,
        writable: true,
    };
    let length = 4 * PAGE_BYTES;
    let made = |regions: Vec<Region>| Memory::new(vec![length], regions);
    assert!(made(vec![region(0, 2, 2), region(0, 0, 2)]).is_ok());
    let wrong = [
        vec![],
        vec![region(0, 0, 3)],
        vec![region(0, 0, 5)],
        vec![region(0, 0, 2), region(0, 3, 1)],
        vec![region(0, 0, 3), region(0, 2, 2)],
        vec![region(0, 0, 4), region(1, 0, 1)],
        vec![region(0, 0, 0), region(0, 0, 4)],
        vec![Region { offset: 1, ..region(0, 0, 4) }],
        vec![Region { length: u64::MAX - 4095, ..region(0, 0, 4) }],
        vec![Region { page_bytes: 5000, ..region(0, 0, 4) }],
    ];
    for regions in wrong {
        assert_eq!(made(regions).unwrap_err().kind, ErrorKind::Usage);
    }
}

#[test]
fn a_process_that_has_ended_is_gone() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let process = Arc::new(Process::open(child.id().cast_signed()).unwrap());
    process.check_access().unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let (start, end) = stack.split(' ').next().unwrap().split_once('-').unwrap();
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    let (address, length) = (number(start), number(end) - number(start));
    let backing =
        Backing::Private { process: ProcessRange { process: Arc::clone(&process), address }, file: None };
    let region = Region { block: 0, offset: 0, length, backing, page_bytes: PAGE_BYTES, writable: true };
    let memory = Memory::new(vec![length], vec![region]).unwrap();
    let (content, total) = scan_and_read(&memory, 0);
    assert!(total > 0 && content.windows(5).any(|window| window == b"sleep"));

    child.kill().unwrap();
    while process.check_alive().is_ok() {
        std::thread::yield_now();
    }
    let gone = |result: Result<()>| assert_eq!(result.unwrap_err().kind, ErrorKind::GuestGone);
    let all_gone = || {
        gone(process.check_alive());
        gone(process.check_access());
        gone(memory.scan(0).map(drop));
        let mut bytes = vec![0; PAGE];
        let piece = Piece { offset: length - PAGE_BYTES, length: PAGE, buffer_offset: 0 };
        // SAFETY: the piece is as long as the buffer.
        gone(unsafe { memory.read(BY_PROCESS, &[piece], bytes.as_mut_ptr()) });
        // SAFETY: as above.
        gone(unsafe { memory.write(0, &[piece], bytes.as_ptr()) });
    };
    // While its number is still its own, and when it can be given to another process.
    all_gone();
    child.wait().unwrap();
    all_gone();
    gone(Process::open(child.id().cast_signed()).map(drop));
    gone(Process::open(0).map(drop));
    gone(Process::open(-1).map(drop));
}

/// A swap file that is in use for as long as it lives.
struct Swap(tempfile::NamedTempFile);

impl Swap {
    fn on() -> Option<Self> {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        std::fs::write(file.path(), vec![0; 16 << 20]).unwrap();
        file.as_file().sync_all().unwrap();
        let done = |command: &str| {
            let output = std::process::Command::new(command).arg(file.path()).output();
            output.is_ok_and(|output| output.status.success())
        };
        (done("mkswap") && done("swapon")).then_some(Self(file))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let status = std::process::Command::new("swapoff").arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}

#[test]
fn pages_that_were_swapped_out_are_data() {
    let Some(_swap) = Swap::on() else {
        eprintln!("SKIPPED: this host lets us add no swap");
        return;
    };
    let memfd = || memfd(MemfdFlags::empty());
    let guests = [
        Guest::anonymous(),
        Guest::of_file(memfd(), PAGE_BYTES, &[3, 40], false),
        Guest::of_file(memfd(), PAGE_BYTES, &[3, 40], true),
    ];
    for mut guest in guests {
        (0..PAGES).step_by(3).for_each(|page| guest.touch(page, 0x77));
        let used = swap_used();
        // SAFETY: the range is the guest's mapping; its bytes do not change by this.
        unsafe { madvise(guest.base.cast(), guest.model.len(), Advice::LinuxPageOut) }.unwrap();
        if swap_used() <= used {
            eprintln!("SKIPPED: {} memory was not swapped out", guest.region(PAGE_BYTES).kind());
        }
        assert!(scan_and_read(&guest.memory(), 0).0 == guest.model);
    }
}

/// Kilobytes.
fn swap_used() -> u64 {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap();
    swaps.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok()).sum()
}

/// A file on a file system of its own, which is gone with it; `None` where we may mount nothing.
fn file_on(file_system: &[&str]) -> Option<File> {
    let directory = tempfile::tempdir().unwrap();
    let run = |command: &str, arguments: &[&str]| {
        let output = std::process::Command::new(command).args(arguments).arg(directory.path()).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !run("mount", &[&["none", "-t"], file_system].concat()) {
        eprintln!("SKIPPED: this host lets us mount nothing");
        return None;
    }
    let file = File::options().read(true).write(true).create_new(true).open(directory.path().join("ram"));
    assert!(run("umount", &["--lazy"]));
    Some(file.unwrap())
}

/// A page that cannot be had is EFAULT to whoever writes by the process's mapping.
#[test]
fn a_full_tmpfs_is_told_however_it_is_written() {
    let Some(file) = file_on(&["tmpfs", "-o", "size=64k"]) else { return };
    let mut guest = Guest::of_file(file, PAGE_BYTES, &[], false);
    for by_process in [true, false] {
        guest.by_process = by_process;
        let piece = Piece { offset: 0, length: 20 * PAGE, buffer_offset: 0 };
        // SAFETY: the piece is as long as the data.
        let written = unsafe { guest.memory().write(0, &[piece], vec![7; 20 * PAGE].as_ptr()) };
        assert_eq!(written.unwrap_err().kind, ErrorKind::NoSpace);
    }
}

/// ramfs can neither tell holes nor punch them.
#[test]
fn files_that_cannot_be_punched_are_zeroed() {
    let Some(file) = file_on(&["ramfs"]) else { return };
    let mut guest = Guest::of_file(file, PAGE_BYTES, &[1, 2, 30], false);
    let memory = guest.memory();
    assert!(scan_and_read(&memory, 0).0 == guest.model);
    check_clear(&mut guest, &memory, &[2, 31]);
    check_write(&mut guest, &memory, &[(60, 4)]);
}
