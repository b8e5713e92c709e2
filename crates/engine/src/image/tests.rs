use super::*;
use crate::io::{Blocking, Completion, Direction, FaultCounts, Faults, Files, Io, Queue, Request, Simulated};
use crate::pool::Pool;
use crate::{Error, ErrorKind, Result};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tempfile::TempDir;

/// Bytes of the test image: a page of data, a hole, metadata in two parts.
const IMAGE_BYTES: u64 = 20_000;

/// A directory on the disk that the build is on: the default one may be in memory.
fn directory() -> TempDir {
    let beside = std::env::current_exe().unwrap();
    tempfile::tempdir_in(beside.parent().unwrap()).unwrap()
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn create(directory: &TempDir, force: bool) -> Result<ImageWriter> {
    ImageWriter::create(Arc::new(Blocking), &directory.path().join("image"), force, false)
}

fn refusal(outcome: Result<ImageWriter>) -> Error {
    let error = outcome.unwrap_err();
    assert!(error.path.is_some(), "{error:?} names no path");
    error
}

/// Writes the whole test image, one page of it through the engine.
fn write(image: &ImageWriter) -> Result<()> {
    let pool = Pool::new(1, 4096)?;
    image.set_length(8192)?;
    image.begin_transfer()?;
    let mut queue = image.io().queue(1, &pool).unwrap();
    // SAFETY: the slot holds that many bytes, and nothing is in flight on it.
    unsafe { pool.slot(0).write_bytes(3, 4096) };
    let (direction, fd) = (Direction::Write, image.fd().as_raw_fd());
    let request = Request { token: 0, direction, fd, offset: 4096, buffer: pool.slot(0), length: 4096 };
    // SAFETY: the image's file and the pool outlive the queue, and nobody writes to the slot.
    unsafe { queue.push(request) }.unwrap();
    let mut completions: Vec<Completion> = Vec::new();
    queue.wait(&mut completions).unwrap();
    let failed = |cause| Error::os("the request failed", cause).at_path("image");
    assert_eq!(completions.remove(0).result.map_err(failed)?, 4096);
    image.end_transfer()?;
    image.write_metadata(&[(0, &[1; 100]), (15_000, &[2; 4000])])?;
    image.set_length(IMAGE_BYTES)?;
    image.sync()
}

fn whole_image() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(IMAGE_BYTES).unwrap()];
    bytes[..100].fill(1);
    bytes[4096..8192].fill(3);
    bytes[15_000..19_000].fill(2);
    bytes
}

#[test]
fn an_image_appears_whole_and_under_its_name_only_when_published() {
    let directory = directory();
    for direct in [false, true] {
        let path = directory.path().join("image");
        let image = match ImageWriter::create(Arc::new(Blocking), &path, true, direct) {
            Err(error) if direct && error.kind == ErrorKind::HostUnsupported => {
                return eprintln!("skipped: {error}");
            }
            image => image.unwrap(),
        };
        let mode = fs::metadata(directory.path().join("image.partial")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        write(&image).unwrap();
        assert!(names(&directory).contains(&"image.partial".to_owned()));
        image.publish().unwrap();
        assert_eq!(names(&directory), ["image"]);
        image.discard().unwrap();
        drop(image);
        assert_eq!(fs::read(path).unwrap(), whole_image());
    }
}

#[test]
fn an_image_that_is_not_published_vanishes_and_gives_its_space_back() {
    let directory = directory();
    let image = create(&directory, false).unwrap();
    write(&image).unwrap();
    let file = fs::File::open(directory.path().join("image.partial")).unwrap();
    image.discard().unwrap();
    image.discard().unwrap();
    assert_eq!((names(&directory).len(), file.metadata().unwrap().blocks()), (0, 0));
    assert_eq!(image.publish().unwrap_err().kind, ErrorKind::Usage);
    drop(create(&directory, false).unwrap());
    assert_eq!(names(&directory).len(), 0);
}

#[test]
fn a_target_that_exists_is_refused_before_anything_is_created() {
    let directory = directory();
    fs::write(directory.path().join("image"), "old").unwrap();
    assert_eq!(refusal(create(&directory, false)).kind, ErrorKind::TargetExists);
    assert_eq!(names(&directory), ["image"]);
    fs::remove_file(directory.path().join("image")).unwrap();
    symlink("nowhere", directory.path().join("image")).unwrap();
    assert_eq!(refusal(create(&directory, false)).kind, ErrorKind::TargetExists, "a dangling link exists");
    fs::remove_file(directory.path().join("image")).unwrap();
    fs::create_dir(directory.path().join("image")).unwrap();
    assert_eq!(refusal(create(&directory, true)).kind, ErrorKind::TargetExists, "a directory, force or not");
    assert_eq!(names(&directory), ["image"]);
}

#[test]
fn force_replaces_a_link_and_not_what_it_leads_to() {
    let directory = directory();
    fs::write(directory.path().join("other"), "precious").unwrap();
    symlink("other", directory.path().join("image")).unwrap();
    let image = create(&directory, true).unwrap();
    write(&image).unwrap();
    image.publish().unwrap();
    assert_eq!(names(&directory), ["image", "other"]);
    assert_eq!(fs::read(directory.path().join("other")).unwrap(), b"precious");
    assert!(fs::symlink_metadata(directory.path().join("image")).unwrap().is_file());
    assert_eq!(fs::read(directory.path().join("image")).unwrap(), whole_image());
}

#[test]
fn devices_pipes_and_directories_are_never_replaced() {
    let directory = directory();
    let path = directory.path().join("image");
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(refusal(create(&directory, true)).kind, ErrorKind::TargetExists);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(refusal(create(&directory, true)).kind, ErrorKind::TargetExists);
    assert_eq!(names(&directory), ["image"]);
}

#[test]
fn a_target_that_appears_meanwhile_is_kept_unless_forced() {
    for force in [false, true] {
        let directory = directory();
        let image = create(&directory, force).unwrap();
        write(&image).unwrap();
        fs::write(directory.path().join("image"), "newer").unwrap();
        let outcome = image.publish();
        drop(image);
        let found = fs::read(directory.path().join("image")).unwrap();
        if force {
            outcome.unwrap();
            assert_eq!(found, whole_image());
        } else {
            assert_eq!(outcome.unwrap_err().kind, ErrorKind::TargetExists);
            assert_eq!(found, b"newer");
        }
        assert_eq!(names(&directory), ["image"]);
    }
}

#[test]
fn a_leftover_is_replaced_and_a_locked_one_is_busy() {
    let directory = directory();
    fs::write(directory.path().join("image.partial"), "left over").unwrap();
    let image = create(&directory, false).unwrap();
    assert_eq!(fs::read(directory.path().join("image.partial")).unwrap(), b"");
    assert_eq!(refusal(create(&directory, false)).kind, ErrorKind::TargetBusy);
    assert_eq!(refusal(create(&directory, true)).kind, ErrorKind::TargetBusy, "force does not break locks");
    write(&image).unwrap();
    image.publish().unwrap();
    assert_eq!(fs::read(directory.path().join("image")).unwrap(), whole_image());
}

#[test]
fn a_file_that_another_program_has_locked_is_not_replaced() {
    let directory = directory();
    let path = directory.path().join("image");
    fs::write(&path, "a disk").unwrap();
    // As QEMU does with the disks of a guest: a shared lock of an open file, on a byte behind the data.
    let disk = fs::File::open(&path).unwrap();
    // SAFETY: all zeros is a valid flock, and F_OFD_SETLK reads one.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(libc::F_RDLCK).unwrap();
    (lock.l_start, lock.l_len) = (100, 1);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::fcntl(disk.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }, 0);
    assert_eq!(refusal(create(&directory, true)).kind, ErrorKind::TargetBusy);
    assert_eq!(names(&directory), ["image"]);
    drop(disk);
    drop(create(&directory, true).unwrap());
}

#[test]
fn a_partial_name_that_is_no_regular_file_is_never_followed() {
    let directory = directory();
    let partial = directory.path().join("image.partial");
    fs::write(directory.path().join("other"), "precious").unwrap();
    symlink("other", &partial).unwrap();
    assert_eq!(refusal(create(&directory, true)).kind, ErrorKind::TargetExists);
    assert_eq!(fs::read(directory.path().join("other")).unwrap(), b"precious");
    fs::remove_file(&partial).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &partial, FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(refusal(create(&directory, true)).kind, ErrorKind::TargetExists);
    assert_eq!(names(&directory), ["image.partial", "other"]);
}

#[test]
fn of_many_that_race_for_a_name_one_wins() {
    let directory = directory();
    for _ in 0..100 {
        fs::write(directory.path().join("image.partial"), "left over").unwrap();
        let winners = AtomicUsize::new(0);
        let barrier = std::sync::Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let outcome = create(&directory, false);
                    match &outcome {
                        Ok(_) => _ = winners.fetch_add(1, Ordering::Relaxed),
                        Err(error) => assert_eq!(error.kind, ErrorKind::TargetBusy),
                    }
                    // Nobody lets go before everybody has tried.
                    barrier.wait();
                });
            }
        });
        assert_eq!(winners.into_inner(), 1);
        assert_eq!(names(&directory).len(), 0);
    }
}

#[test]
fn somebody_elses_partial_file_is_neither_published_nor_removed() {
    let directory = directory();
    let image = create(&directory, false).unwrap();
    write(&image).unwrap();
    fs::remove_file(directory.path().join("image.partial")).unwrap();
    fs::write(directory.path().join("image.partial"), "not ours").unwrap();
    assert_eq!(image.publish().unwrap_err().kind, ErrorKind::Io);
    drop(image);
    assert_eq!(names(&directory), ["image.partial"]);
}

#[test]
fn paths_that_name_no_file_are_usage_errors() {
    let directory = directory();
    let long = "x".repeat(248);
    for name in ["image/", "image/.", "image/./", "..", long.as_str()] {
        let outcome = ImageWriter::create(Arc::new(Blocking), &directory.path().join(name), false, false);
        assert_eq!(refusal(outcome).kind, ErrorKind::Usage, "{name}");
    }
    for path in ["", "/", "."] {
        assert_eq!(
            ImageWriter::create(Arc::new(Blocking), Path::new(path), false, false).unwrap_err().kind,
            ErrorKind::Usage
        );
    }
    let missing =
        ImageWriter::create(Arc::new(Blocking), &directory.path().join("missing/image"), false, false);
    assert_eq!(refusal(missing).kind, ErrorKind::NotFound);
    let longest = directory.path().join("x".repeat(247));
    drop(ImageWriter::create(Arc::new(Blocking), &longest, false, false).unwrap());
}

#[test]
fn steps_out_of_turn_are_usage_errors() {
    let directory = directory();
    let image = create(&directory, false).unwrap();
    let usage = |outcome: Result<()>| assert_eq!(outcome.unwrap_err().kind, ErrorKind::Usage);
    usage(image.publish());
    usage(image.end_transfer());
    image.begin_transfer().unwrap();
    usage(image.begin_transfer());
    usage(image.write_metadata(&[(0, b"x")]));
    usage(image.set_length(1));
    usage(image.sync());
    image.end_transfer().unwrap();
    image.sync().unwrap();
    image.write_metadata(&[(0, b"x")]).unwrap();
    usage(image.publish());
    image.sync().unwrap();
    image.publish().unwrap();
    usage(image.publish());
    usage(image.sync());
}

#[test]
fn direct_io_is_on_during_transfers_only() {
    let directory = directory();
    let path = directory.path().join("image");
    let image = match ImageWriter::create(Arc::new(Blocking), &path, false, true) {
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::HostUnsupported);
            return eprintln!("skipped: {error}");
        }
        Ok(image) => image,
    };
    let is_on = || rustix::fs::fcntl_getfl(image.fd()).unwrap().contains(OFlags::DIRECT);
    let Alignment { memory, offset } = direct_alignment(image.fd()).unwrap();
    assert!(memory.is_power_of_two() && offset.is_power_of_two() && memory.max(offset) <= 4096);
    assert!(!is_on());
    image.begin_transfer().unwrap();
    assert!(is_on());
    image.end_transfer().unwrap();
    assert!(!is_on());
    assert_eq!(create(&directory, false).unwrap_err().kind, ErrorKind::TargetBusy);
}

#[test]
fn a_file_system_without_direct_io_is_recognised() {
    assert_eq!(direct_alignment(fs::File::open("/proc/self/status").unwrap().as_fd()), None);
}

#[test]
fn direct_io_in_units_of_more_than_a_page_is_refused() {
    let of = |memory, offset| check_alignment(Some(Alignment { memory, offset }));
    assert!(of(4, 512).is_ok() && of(4096, 4096).is_ok());
    for refused in [of(4, 16384), of(8192, 512), check_alignment(None)] {
        let error = refused.unwrap_err();
        assert!(error.kind == ErrorKind::HostUnsupported && error.message.contains("go without"));
    }
}

#[test]
fn a_length_that_no_file_can_have_is_no_space() {
    let directory = directory();
    let image = create(&directory, false).unwrap();
    for bytes in [i64::MAX as u64, u64::MAX] {
        assert_eq!(image.set_length(bytes).unwrap_err().kind, ErrorKind::NoSpace);
    }
}

#[test]
fn a_sync_that_failed_is_not_made_good_by_another() {
    let directory = directory();
    let io = Arc::new(FailingSync);
    let image = ImageWriter::create(io, &directory.path().join("image"), false, false).unwrap();
    assert_eq!(image.sync().unwrap_err().kind, ErrorKind::Io);
    assert_eq!(image.sync().unwrap_err().kind, ErrorKind::Usage);
    assert_eq!(image.publish().unwrap_err().kind, ErrorKind::Usage);
    drop(image);
    assert_eq!(names(&directory).len(), 0);
}

#[test]
fn without_rename_noreplace_a_link_does_the_same() {
    for exists in [false, true] {
        let directory = directory();
        let image =
            ImageWriter::create(Arc::new(OldFileSystem), &directory.path().join("image"), false, false)
                .unwrap();
        write(&image).unwrap();
        if exists {
            fs::write(directory.path().join("image"), "newer").unwrap();
        }
        let outcome = image.publish();
        drop(image);
        assert_eq!(names(&directory), ["image"]);
        let found = fs::read(directory.path().join("image")).unwrap();
        if exists {
            assert_eq!(outcome.unwrap_err().kind, ErrorKind::TargetExists);
            assert_eq!(found, b"newer");
        } else {
            outcome.unwrap();
            assert_eq!(found, whole_image());
        }
    }
}

#[test]
fn without_hard_links_either_only_force_helps() {
    for force in [false, true] {
        let directory = directory();
        let path = directory.path().join("image");
        let image = ImageWriter::create(Arc::new(NoLinks), &path, force, false).unwrap();
        write(&image).unwrap();
        let outcome = image.publish();
        drop(image);
        if force {
            outcome.unwrap();
            assert_eq!(names(&directory), ["image"]);
        } else {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind, ErrorKind::HostUnsupported);
            assert!(error.message.contains("may be replaced"), "{error}");
            assert_eq!(names(&directory).len(), 0);
        }
    }
}

#[derive(Debug)]
struct FailingSync;

impl Files for FailingSync {
    fn sync_data(&self, _file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        Err(Errno::IO)
    }
}

#[derive(Debug)]
struct OldFileSystem;

impl Files for OldFileSystem {
    fn rename_new(&self, _directory: BorrowedFd<'_>, _from: &OsStr, _to: &OsStr) -> rustix::io::Result<()> {
        Err(Errno::INVAL)
    }
}

#[derive(Debug)]
struct NoLinks;

impl Files for NoLinks {
    fn rename_new(&self, _directory: BorrowedFd<'_>, _from: &OsStr, _to: &OsStr) -> rustix::io::Result<()> {
        Err(Errno::INVAL)
    }

    fn link(&self, _directory: BorrowedFd<'_>, _from: &OsStr, _to: &OsStr) -> rustix::io::Result<()> {
        Err(Errno::PERM)
    }
}

fn of_device(mut status: Stat) -> Stat {
    status.st_mode = FileType::BlockDevice.as_raw_mode();
    status
}

/// A file that passes for a device.
#[derive(Debug)]
struct FailingDevice {
    failing: Range<usize>,
    syncs: AtomicUsize,
}

impl Files for FailingDevice {
    fn status(&self, file: BorrowedFd<'_>) -> rustix::io::Result<Stat> {
        Blocking.status(file).map(of_device)
    }

    fn status_of(&self, path: &Path) -> rustix::io::Result<Stat> {
        Blocking.status_of(path).map(of_device)
    }

    fn sync_data(&self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let fails = self.failing.contains(&self.syncs.fetch_add(1, Ordering::Relaxed));
        if fails { Err(Errno::IO) } else { Blocking.sync_data(file) }
    }
}

/// A file system that gives one kind of call another answer, whether or not that worked.
#[derive(Debug, Clone, Copy)]
struct Answering {
    call: &'static str,
    answer: Errno,
    works: bool,
}

impl Answering {
    fn call(&self, call: &str, real: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        if self.call != call {
            return real();
        }
        if self.works {
            real()?;
        }
        Err(self.answer)
    }
}

impl Files for Answering {
    fn rename_over(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        self.call("rename_over", || Blocking.rename_over(directory, from, to))
    }

    fn rename_new(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        if self.call == "link" {
            return Err(Errno::INVAL);
        }
        self.call("rename_new", || Blocking.rename_new(directory, from, to))
    }

    fn link(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        self.call("link", || Blocking.link(directory, from, to))
    }

    fn unlink(&self, directory: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
        self.call("unlink", || Blocking.unlink(directory, name))
    }
}

/// Engines that are blocking but for some file calls.
macro_rules! blocking_io {
    ($($engine:ident)*) => {$(
        impl Io for $engine {
            fn name(&self) -> &'static str {
                stringify!($engine)
            }

            fn queue<'pool>(&self, depth: u32, pool: &'pool Pool) -> io::Result<Box<dyn Queue + 'pool>> {
                Blocking.queue(depth, pool)
            }
        }
    )*};
}

blocking_io!(FailingSync OldFileSystem NoLinks FailingDevice Answering);

/// A whole life with faults; what is left is looked at by [`check_remains`].
fn live(io: &Arc<Simulated>, directory: &TempDir, force: bool) -> Result<()> {
    let path = directory.path().join("image");
    let image = ImageWriter::create(Arc::<Simulated>::clone(io), &path, force, false);
    // What is examined is the clean-up after a fault, so that one has to be without.
    let image = image.inspect_err(|_| io.heal())?;
    let outcome = write(&image).and_then(|()| image.publish());
    io.heal();
    check_published(directory, &image, &outcome);
    if image.is_published() && outcome.is_err() {
        // Nobody knows: it is kept under whichever name it has.
        let _ = fs::remove_file(directory.path().join("image.partial"));
    }
    outcome
}

fn is_whole(directory: &TempDir, name: &str) -> bool {
    fs::read(directory.path().join(name)).is_ok_and(|found| found == whole_image())
}

/// An image that is said not to be published is not there; one that is said to be is, or is kept under its partial name.
fn check_published(directory: &TempDir, image: &ImageWriter, outcome: &Result<()>) {
    let is_there = is_whole(directory, "image");
    let is_kept = outcome.is_err() && is_whole(directory, "image.partial");
    let is_right = if image.is_published() { is_there || is_kept } else { !is_there };
    assert!(is_right, "published {}, there {is_there}: {outcome:?}", image.is_published());
}

/// Whatever happened: the final name holds the whole image or nothing (or what was there before), nothing else is left.
fn check_remains(
    directory: &TempDir,
    outcome: &Result<()>,
    before: Option<&[u8]>,
    counts: FaultCounts,
    seed: &str,
) {
    let found = fs::read(directory.path().join("image")).ok();
    let whole = found.as_deref() == Some(whole_image().as_slice());
    assert!(whole || found.as_deref() == before, "{seed}: neither whole nor absent after {outcome:?}");
    assert!(whole || outcome.is_err(), "{seed}: success without an image");
    if let Err(error) = outcome {
        assert!(counts.calls + counts.no_space > 0, "{seed}: {error:?} without a fault");
        assert!(error.path.is_some(), "{seed}: {error:?} names no path");
    }
}

#[test]
fn each_call_may_fail_and_nothing_half_done_is_left() {
    for (force, leftover) in [(false, false), (true, false), (false, true)] {
        for seed in 0..4 {
            let mut call = 0;
            loop {
                let directory = directory();
                let before = force.then_some(b"old".as_slice());
                before.inspect(|bytes| fs::write(directory.path().join("image"), bytes).unwrap());
                if leftover {
                    fs::write(directory.path().join("image.partial"), "left over").unwrap();
                }
                let faults = Faults { failing_call: Some(call), ..Faults::default() };
                let io = Arc::new(Simulated::new(seed, faults));
                let outcome = live(&io, &directory, force);
                let counts = io.counts();
                let case = format!("force {force}, leftover {leftover}, seed {seed}, call {call}");
                check_remains(&directory, &outcome, before, counts, &case);
                // A leftover that was not yet ours may stay.
                let partial = directory.path().join("image.partial");
                let still_theirs = leftover && fs::read(&partial).is_ok_and(|bytes| bytes == b"left over");
                assert!(still_theirs || !partial.exists(), "{case}: the partial file is left");
                if counts.calls == 0 {
                    outcome.unwrap();
                    break;
                }
                call += 1;
            }
            assert!(call >= 14, "only {call} calls make a life");
        }
    }
}

/// A device full of something, on which the syncs with these numbers fail.
fn on_device(directory: &TempDir, failing: Range<usize>) -> ImageWriter {
    let path = directory.path().join("image");
    fs::write(&path, vec![0x33; 16 * 4096]).unwrap();
    let io = Arc::new(FailingDevice { failing, syncs: AtomicUsize::new(0) });
    ImageWriter::create(io, &path, true, false).unwrap()
}

fn start_of_image(directory: &TempDir) -> Vec<u8> {
    fs::read(directory.path().join("image")).unwrap()[..8].to_vec()
}

/// Number of the sync with which an image on a device is published; the first is that of what was there.
const PUBLISHING_SYNC: usize = 2;

#[test]
fn publishing_on_a_device_that_failed_is_undone_at_once() {
    let directory = directory();
    let image = on_device(&directory, PUBLISHING_SYNC..PUBLISHING_SYNC + 1);
    write(&image).unwrap();
    assert_eq!(image.publish().unwrap_err().kind, ErrorKind::Io);
    assert_eq!(start_of_image(&directory), [0; 8]);
    assert!(!image.is_published());
}

#[test]
fn publishing_on_a_device_that_cannot_be_undone_counts_as_done() {
    let directory = directory();
    let image = on_device(&directory, PUBLISHING_SYNC..usize::MAX);
    write(&image).unwrap();
    let error = image.publish().unwrap_err();
    assert!(image.is_published());
    assert!(error.message.contains("may hold the whole image") && error.path.is_some(), "{error:?}");
}

#[test]
fn a_device_whose_wipe_failed_is_wiped_when_it_is_given_up() {
    let directory = directory();
    let image = on_device(&directory, 0..1);
    image.set_length(8192).unwrap_err();
    image.discard().unwrap();
    assert_eq!(fs::read(directory.path().join("image")).unwrap()[..4096], [0; 4096]);
}

/// What is read where a disk has discarded something may be anything.
#[test]
fn a_device_discards_what_it_held_but_not_what_was_overwritten_with_zeros() {
    let directory = directory();
    let path = directory.path().join("image");
    fs::write(&path, vec![0x33; 16 * 4096]).unwrap();
    let io = Simulated::recording(1, Faults::default(), directory.path(), Some("image")).unwrap();
    let image = ImageWriter::create(Arc::new(io), &path, true, false).unwrap();
    image.set_length(8192).unwrap();
    let bytes = fs::read(&path).unwrap();
    let pages: Vec<u8> = bytes.chunks(4096).map(|page| page.iter().fold(0, |all, byte| all | byte)).collect();
    assert_eq!(pages, [vec![0], vec![0xdd; 14], vec![0]].concat());
}

/// What publishing comes to, and whether it counts as done, where one kind of call has another answer.
fn publish_with(directory: &TempDir, io: Answering) -> (Error, bool) {
    let force = io.call == "rename_over";
    let image = ImageWriter::create(Arc::new(io), &directory.path().join("image"), force, false).unwrap();
    write(&image).unwrap();
    let error = image.publish().unwrap_err();
    assert_eq!(error.path.as_deref(), Some(image.path()));
    (error, image.is_published())
}

const NAMING: [&str; 3] = ["rename_over", "rename_new", "link"];

#[test]
fn an_image_that_may_have_its_name_counts_as_published_and_is_kept() {
    let lost = [
        Errno::IO,
        Errno::NOTCONN,
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::TIMEDOUT,
        Errno::STALE,
        Errno::NOMEM,
    ];
    let maybe = lost.map(|answer| [(answer, false), (answer, true)]).concat();
    // Sent again after it had worked: its answer was lost.
    for (answer, works) in [maybe, vec![(Errno::EXIST, true), (Errno::NOENT, true)]].concat() {
        for call in NAMING {
            let directory = directory();
            let io = Answering { call, answer, works };
            let (error, is_published) = publish_with(&directory, io);
            assert!(is_published, "{io:?}");
            assert!(error.message.contains("it may still be") && error.message.contains("image.partial"));
            assert!(is_whole(&directory, if works { "image" } else { "image.partial" }), "{io:?}");
        }
    }
}

#[test]
fn an_image_whose_name_was_refused_is_not_published() {
    for answer in [Errno::ACCESS, Errno::ROFS, Errno::NOSPC, Errno::DQUOT, Errno::ISDIR, Errno::BUSY] {
        for call in NAMING {
            let directory = directory();
            let io = Answering { call, answer, works: false };
            let (error, is_published) = publish_with(&directory, io);
            assert!(!is_published && !error.message.contains("may"), "{io:?}: {error:?}");
            assert_eq!(names(&directory).len(), 0, "{io:?}");
        }
    }
}

#[test]
fn an_image_that_somebody_else_gave_its_name_counts_as_published() {
    let directory = directory();
    let image = create(&directory, false).unwrap();
    write(&image).unwrap();
    fs::rename(directory.path().join("image.partial"), directory.path().join("image")).unwrap();
    assert_eq!(image.publish().unwrap_err().kind, ErrorKind::Io);
    assert!(image.is_published());
    drop(image);
    assert!(is_whole(&directory, "image"));
}

#[test]
fn a_name_that_is_there_with_our_length_counts_as_ours_where_files_have_no_numbers_that_stay() {
    let directory = directory();
    let image = create(&directory, false).unwrap();
    write(&image).unwrap();
    fs::copy(directory.path().join("image.partial"), directory.path().join("image")).unwrap();
    assert_eq!(image.publish().unwrap_err().kind, ErrorKind::TargetExists);
    assert!(image.is_published());
    drop(image);
    assert!(is_whole(&directory, "image"));
}

#[test]
fn a_partial_file_that_cannot_be_removed_is_emptied() {
    let directory = directory();
    let io = Answering { call: "unlink", answer: Errno::PERM, works: false };
    let image = ImageWriter::create(Arc::new(io), &directory.path().join("image"), false, false).unwrap();
    write(&image).unwrap();
    assert_eq!(image.discard().unwrap_err().kind, ErrorKind::Permission);
    assert_eq!(fs::metadata(directory.path().join("image.partial")).unwrap().len(), 0);
}

#[test]
fn any_number_of_calls_may_fail() {
    let (mut published, mut failed) = (0, 0);
    for seed in 0..500 {
        let directory = directory();
        let space_bytes = (seed % 5 == 0).then_some(seed * 40);
        let io = Arc::new(Simulated::new(seed, Faults { calls: 60, space_bytes, ..Faults::default() }));
        let path = directory.path().join("image");
        // No healing: the clean-up has faults too and may have to leave the partial file.
        let outcome = ImageWriter::create(Arc::<Simulated>::clone(&io) as Arc<dyn Io>, &path, false, false)
            .and_then(|image| {
                let outcome = write(&image).and_then(|()| image.publish());
                check_published(&directory, &image, &outcome);
                outcome
            });
        check_remains(&directory, &outcome, None, io.counts(), &format!("seed {seed}"));
        if outcome.is_ok() {
            published += 1
        } else {
            failed += 1
        }
        // Whatever is left stands in nobody's way.
        let again = create(&directory, true).unwrap();
        write(&again).unwrap();
        again.publish().unwrap();
        drop(again);
        assert_eq!(names(&directory), ["image"], "seed {seed}");
        assert_eq!(fs::read(path).unwrap(), whole_image(), "seed {seed}");
    }
    assert!(published > 50 && failed > 50, "{published} published, {failed} failed");
}

#[test]
fn what_is_reopened_is_the_same_file_and_errors_name_it_as_its_user_does() {
    let directory = directory();
    let path = directory.path().join("file");
    fs::write(&path, "x").unwrap();
    let file = File::open(&path).unwrap();
    fs::rename(&path, directory.path().join("moved")).unwrap();
    let again = reopen(file.as_fd(), &path, false).unwrap();
    assert_eq!(again.metadata().unwrap().ino(), file.metadata().unwrap().ino());
    let error = reopen(File::open("/proc/self/status").unwrap().as_fd(), &path, true).unwrap_err();
    assert_eq!((error.kind, error.path.as_deref()), (ErrorKind::HostUnsupported, Some(path.as_path())));
}
