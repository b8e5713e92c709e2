//! Memory of this very process and of a child, found by address and by name.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};

use mapram_engine::memory::{Memory, Piece};
use mapram_engine::{ErrorKind, PAGE_BYTES, Result};
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, memfd_create, mknodat};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::*;

const PAGES: u64 = 8;
const BYTES: u64 = PAGES * PAGE_BYTES;

/// A mapping of this process.
struct Mapping {
    address: u64,
    bytes: usize,
}

impl Mapping {
    /// At `address`, over what is there (a part of a mapping of the test's own), or anywhere.
    fn of(file: Option<&File>, bytes: u64, flags: MapFlags, at: Option<u64>) -> Self {
        let bytes = usize::try_from(bytes).unwrap();
        let start = std::ptr::with_exposed_provenance_mut(usize::try_from(at.unwrap_or(0)).unwrap());
        let flags = flags | if at.is_some() { MapFlags::FIXED } else { MapFlags::empty() };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let base = match file {
            // SAFETY: only a mapping of the test's own, which nobody refers to, can be replaced.
            Some(file) => unsafe { mmap(start, bytes, protection, flags, file, 0) },
            // SAFETY: as above.
            None => unsafe { mmap_anonymous(start, bytes, protection, flags) },
        };
        Self { address: base.unwrap().expose_provenance() as u64, bytes }
    }

    fn touch(&self, page: u64, value: u8) {
        let at =
            std::ptr::with_exposed_provenance_mut(usize::try_from(self.address + page * PAGE_BYTES).unwrap());
        // SAFETY: the page lies within the mapping, to which nobody has a reference.
        unsafe { std::ptr::write_bytes::<u8>(at, value, 4096) };
    }

    fn block(&self, name: &str) -> BlockAddress {
        BlockAddress { name: name.into(), address: self.address, length: self.bytes as u64 }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let base = std::ptr::with_exposed_provenance_mut(usize::try_from(self.address).unwrap());
        // SAFETY: the mapping is the test's own, and nobody refers to it.
        unsafe { munmap(base, self.bytes) }.unwrap();
    }
}

fn memfd() -> File {
    let file = File::from(memfd_create("mapram-test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(BYTES).unwrap();
    file
}

fn my_pid() -> i32 {
    std::process::id().cast_signed()
}

/// The first byte of every page of a block; those in no extent are zero.
fn first_bytes(memory: &Memory, block: usize) -> Vec<u8> {
    let length = usize::try_from(memory.blocks()[block]).unwrap();
    let mut content = vec![0; length];
    for extent in memory.scan(block).unwrap() {
        let at = usize::try_from(extent.offset).unwrap();
        let piece = Piece {
            offset: extent.offset,
            length: usize::try_from(extent.length).unwrap(),
            buffer_offset: at,
        };
        // SAFETY: the extent lies within the block, which the content is as long as.
        unsafe { memory.read(extent.source, &[piece], content.as_mut_ptr()) }.unwrap();
    }
    content.chunks(4096).map(|page| page[0]).collect()
}

fn write_page(memory: &Memory, block: usize, page: u64, value: u8) -> Result<()> {
    let piece = Piece { offset: page * PAGE_BYTES, length: 4096, buffer_offset: 0 };
    // SAFETY: the piece is as long as the page that it is written from.
    unsafe { memory.write(block, &[piece], [value; 4096].as_ptr()) }
}

fn kinds(memory: &Memory) -> Vec<(usize, u64, u64, &'static str)> {
    let pages = |bytes| bytes / PAGE_BYTES;
    let regions = memory.regions().iter();
    regions.map(|region| (region.block, pages(region.offset), pages(region.length), region.kind())).collect()
}

/// Runs `test` in a thread without capabilities: what an ordinary user may do with a process of the same user.
fn unprivileged<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let run = || {
        let none = CapabilitySet::empty();
        // The kernel keeps them for each thread, and this one ends with the test.
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .unwrap();
        test()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// A block over three mappings of different kinds, and one of each kind by itself.
#[test]
fn every_mapping_becomes_a_region_of_its_kind() {
    let (shared, private) = (memfd(), memfd());
    private.write_all_at(&[5; 4096], 2 * PAGE_BYTES).unwrap();
    let whole = Mapping::of(None, 3 * BYTES, MapFlags::PRIVATE, None);
    whole.touch(1, 1);
    let second = Mapping::of(Some(&shared), BYTES, MapFlags::SHARED, Some(whole.address + BYTES));
    second.touch(3, 2);
    let third = Mapping::of(Some(&private), BYTES, MapFlags::PRIVATE, Some(whole.address + 2 * BYTES));
    third.touch(7, 3);
    let inside = BlockAddress {
        address: second.address + 2 * PAGE_BYTES,
        length: 2 * PAGE_BYTES,
        ..second.block("b")
    };
    let blocks = [whole.block("a"), inside];
    let check = || {
        let memory = open_guest(my_pid(), &blocks, true).unwrap();
        let expected = [
            (0, 0, PAGES, "anonymous"),
            (0, PAGES, PAGES, "shared-file"),
            (0, 2 * PAGES, PAGES, "private-file"),
            (1, 0, 2, "shared-file"),
        ];
        assert_eq!(kinds(&memory), expected);
        let mut bytes = [0; 24];
        (bytes[1], bytes[11], bytes[18], bytes[23]) = (1, 2, 5, 3);
        assert_eq!(first_bytes(&memory, 0), bytes);
        assert_eq!(first_bytes(&memory, 1), [0, 2]);
        write_page(&memory, 0, 18, 6).unwrap();
        write_page(&memory, 0, 10, 7).unwrap();
        (bytes[18], bytes[10]) = (6, 7);
        assert_eq!(first_bytes(&memory, 0), bytes);
        write_page(&memory, 0, 18, 5).unwrap();
        write_page(&memory, 0, 10, 0).unwrap();
    };
    check();
    // Without map_files, by the process's fds.
    unprivileged(check);
    let mut byte = [0];
    private.read_exact_at(&mut byte, 2 * PAGE_BYTES).unwrap();
    assert_eq!(byte, [5], "the file behind a private mapping was written");
    std::mem::forget((second, third));
}

/// One file, mapped once for reading only and once for writing too.
#[test]
fn what_is_mapped_for_reading_only_is_never_written() {
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let file = memfd();
        file.write_all_at(&[3; 4096], 0).unwrap();
        let mappings = [0, 1].map(|_| Mapping::of(Some(&file), BYTES, flags, None));
        let start = std::ptr::with_exposed_provenance_mut(usize::try_from(mappings[0].address).unwrap());
        // SAFETY: the pages are the test's own, and nobody refers to them.
        unsafe { mprotect(start, mappings[0].bytes, MprotectFlags::READ) }.unwrap();
        let blocks = [mappings[0].block("read-only"), mappings[1].block("writable")];
        let memory = open_guest(my_pid(), &blocks, true).unwrap();
        let writable: Vec<bool> = memory.regions().iter().map(|region| region.writable).collect();
        assert_eq!(writable, [false, true]);
        assert_eq!(first_bytes(&memory, 0)[0], 3);
        assert_eq!(write_page(&memory, 0, 0, 4).unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(first_bytes(&memory, 0)[0], 3);
        write_page(&memory, 1, 0, 5).unwrap();
        // Its file is open for reading only too, whatever else goes wrong.
        let opened = &memory.regions()[0].backing.file().unwrap().file;
        assert!(opened.write_at(&[1], 0).is_err());
    }
}

#[test]
fn a_file_without_an_fd_is_opened_by_its_path_or_refused() {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().set_len(BYTES).unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let mapping = Mapping::of(Some(file.as_file()), BYTES, MapFlags::SHARED, None);
    mapping.touch(2, 9);
    let path = file.into_temp_path();
    let open = || open_guest(my_pid(), &[mapping.block("a")], true);
    let expected = [0, 0, 9, 0, 0, 0, 0, 0];
    assert_eq!(first_bytes(&open().unwrap(), 0), expected);
    unprivileged(|| assert_eq!(first_bytes(&open().unwrap(), 0), expected));
    // A file of the same name is another file.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, vec![1; 4096]).unwrap();
    assert_eq!(first_bytes(&open().unwrap(), 0), expected);
    unprivileged(|| {
        let error = open().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Permission);
        assert!(error.message.contains("RAM block a") && error.path.is_some(), "{error}");
    });
}

#[test]
fn anonymous_huge_pages_are_private_hugetlb_memory() {
    let bytes = 4 << 20;
    let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::NORESERVE;
    let mapping = Mapping::of(None, bytes, flags, None);
    let memory = open_guest(my_pid(), &[mapping.block("a")], false);
    match memory {
        Ok(memory) => {
            assert_eq!(kinds(&memory), [(0, 0, bytes / PAGE_BYTES, "private-hugetlb")]);
            assert_eq!(memory.regions()[0].page_bytes, 2 << 20);
            assert_eq!(memory.scan(0).unwrap(), []);
        }
        // They have no fd and no path, so it takes map_files.
        Err(error) => assert_eq!(error.kind, ErrorKind::Permission, "{error}"),
    }
}

/// The file behind it is a device, or has no place in any file system.
#[test]
fn memory_that_is_no_regular_file_is_not_supported() {
    let device = File::options().read(true).write(true).open("/dev/zero").unwrap();
    let refuse = |file: &File, name: &str| {
        let mapping = Mapping::of(Some(file), PAGE_BYTES, MapFlags::PRIVATE, None);
        let check = || {
            let error = open_guest(my_pid(), &[mapping.block("pc.ram")], true).unwrap_err();
            assert_eq!(error.kind, ErrorKind::HostUnsupported, "{error}");
            assert!(error.message.contains("pc.ram") && error.message.contains(name), "{error}");
        };
        check();
        unprivileged(check);
    };
    refuse(&device, "/dev/zero");

    let mut parameters = [0_u8; 120];
    // SAFETY: the parameters are a zeroed `struct io_uring_params`, which has 120 bytes, for the kernel to fill in.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let Ok(fd @ 0..) = i32::try_from(fd) else {
        eprintln!("SKIPPED: this host lets us make no io_uring");
        return;
    };
    // SAFETY: the kernel has just made this fd for us; nobody else knows it.
    let ring = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let shared = Mapping::of(Some(&ring), PAGE_BYTES, MapFlags::SHARED, None);
    let error = open_guest(my_pid(), &[shared.block("ring")], false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::HostUnsupported, "{error}");
    assert!(error.message.contains("RAM block ring") && error.message.contains("io_uring"), "{error}");
}

#[test]
fn a_block_that_is_not_mapped_throughout_is_named() {
    let mapping = Mapping::of(None, BYTES, MapFlags::PRIVATE, None);
    let hole = mapping.address + 3 * PAGE_BYTES;
    // SAFETY: the page is part of the test's own mapping, and nobody refers to it.
    unsafe { munmap(std::ptr::with_exposed_provenance_mut(usize::try_from(hole).unwrap()), 4096) }.unwrap();
    let error = open_guest(my_pid(), &[mapping.block("pc.ram")], false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Usage);
    assert!(error.message.contains("pc.ram") && error.message.contains(&format!("{hole:#x}")), "{error}");

    for (address, length) in [(1, 4096), (4096, 1), (u64::MAX - 4095, 8192)] {
        let block = BlockAddress { name: "odd".into(), address, length };
        assert_eq!(open_guest(my_pid(), &[block], false).unwrap_err().kind, ErrorKind::Usage);
    }
}

/// A child that sleeps; killed and reaped at the end.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("60").spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn stack(&self) -> BlockAddress {
        let maps =
            crate::maps::parse_maps(&std::fs::read(format!("/proc/{}/maps", self.pid())).unwrap()).unwrap();
        let stack = maps.into_iter().find(|vma| vma.path == "[stack]").unwrap();
        BlockAddress { name: "stack".into(), address: stack.start, length: stack.end - stack.start }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn memory_of_another_process_is_read_and_written() {
    let child = Sleeper::start();
    let stack = child.stack();
    let memory = open_guest(child.pid(), std::slice::from_ref(&stack), true).unwrap();
    assert!(!memory.scan(0).unwrap().is_empty());
    write_page(&memory, 0, 0, 0x42).unwrap();
    assert_eq!(first_bytes(&memory, 0)[0], 0x42);
    let named = NamedMemory {
        name: "n".into(),
        length: stack.length,
        pid: Some(child.pid()),
        address: Some(stack.address),
        ..NamedMemory::default()
    };
    assert_eq!(first_bytes(&open_named(&[named], false).unwrap(), 0)[0], 0x42);
}

#[test]
fn what_may_not_be_read_is_refused_with_a_hint() {
    let child = Sleeper::start();
    let stack = [child.stack()];
    // A child of root has capabilities, so whoever has none may not look into it; a user's child may be looked into.
    unprivileged(|| {
        if !rustix::process::getuid().is_root() {
            eprintln!("SKIPPED: this takes a child of root");
            return;
        }
        let error = open_guest(child.pid(), &stack, false).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Permission);
        assert!(error.message.contains("ptrace_scope"), "{error}");
    });
    let pid = child.pid();
    drop(child);
    assert_eq!(open_guest(pid, &stack, false).unwrap_err().kind, ErrorKind::GuestGone);
}

#[test]
fn files_and_fds_are_memory_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ram");
    std::fs::write(&path, vec![4; 3 * 4096]).unwrap();
    let memfd = memfd();
    let named =
        |name: &str| NamedMemory { name: name.into(), length: 2 * PAGE_BYTES, ..NamedMemory::default() };
    let by_file = NamedMemory { file: Some(path.clone()), offset: PAGE_BYTES, ..named("file") };
    let by_fd = NamedMemory { fd: Some(memfd.as_raw_fd()), ..named("fd") };
    let memory = open_named(&[by_file.clone(), by_fd.clone()], true).unwrap();
    assert_eq!(kinds(&memory), [(0, 0, 2, "shared-file"), (1, 0, 2, "shared-file")]);
    write_page(&memory, 0, 1, 8).unwrap();
    write_page(&memory, 1, 0, 9).unwrap();
    assert_eq!((first_bytes(&memory, 0), first_bytes(&memory, 1)), (vec![4, 8], vec![9, 0]));

    let read_only = File::open(&path).unwrap();
    let appending = File::options().read(true).append(true).open(&path).unwrap();
    let fd = |file: &File| NamedMemory { fd: Some(file.as_raw_fd()), ..named("fd") };
    assert!(open_named(&[fd(&read_only)], false).is_ok());
    let wrong = [
        fd(&read_only),
        fd(&appending),
        NamedMemory { fd: Some(-1), ..named("fd") },
        NamedMemory { length: 4 * PAGE_BYTES, ..by_file.clone() },
        NamedMemory { offset: u64::MAX - 4095, ..by_file.clone() },
        NamedMemory { offset: 1, ..by_file.clone() },
        NamedMemory { length: 1, ..by_file.clone() },
        NamedMemory { fd: by_fd.fd, ..by_file.clone() },
        NamedMemory { pid: Some(my_pid()), ..named("no address") },
        NamedMemory { file: Some("/dev/null".into()), ..named("device") },
        named("nothing"),
    ];
    for block in wrong {
        let error = open_named(std::slice::from_ref(&block), true).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage, "{block:?}: {error}");
    }
    let fifo = directory.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let fifo = NamedMemory { file: Some(fifo), ..named("fifo") };
    assert_eq!(open_named(&[fifo], false).unwrap_err().kind, ErrorKind::Usage);
    let missing = NamedMemory { file: Some(directory.path().join("missing")), ..named("m") };
    assert_eq!(open_named(&[missing], false).unwrap_err().kind, ErrorKind::NotFound);
}
