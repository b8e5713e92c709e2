//! One suite over all engines: what [`Queue`] promises, on real files.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::{Completion, Direction, Faults, Io, MAX_QUEUE_DEPTH, Queue, Request, Simulated, probe};
use crate::pool::Pool;

const SLOT: u32 = 64 << 10;

/// Runs the suite once for each engine, as tests of their own.
macro_rules! conformance {
    ($($module:ident: $engine:expr;)*) => {$(
        mod $module {
            use super::*;

            conformance!(@tests $engine;
                bytes_survive_a_round_trip_buffered, bytes_survive_a_round_trip_direct, a_full_queue_says_so,
                a_thousand_requests_pass_a_depth_of_eight, reads_past_the_end_are_short,
                errors_are_handed_up, buffers_need_not_be_in_the_pool, dropping_waits_for_what_is_in_flight,
                an_empty_queue_does_not_wait, impossible_depths_are_refused, engines_work_from_several_threads,
                requests_share_a_descriptor, a_descriptor_may_come_back_as_another_file,
            );
        }
    )*};
    (@tests $engine:expr; $($test:ident,)*) => {$(
        #[test]
        fn $test() {
            if let Some(engine) = $engine {
                super::$test(engine.as_ref());
            }
        }
    )*};
}

conformance! {
    io_uring: engine("io-uring");
    tokio_uring: engine("tokio-uring");
    blocking: engine("blocking");
    simulated: Some(Box::new(Simulated::new(1, Faults { delayed: 200, reordered: true, ..Faults::default() })));
}

/// The engine called `name`, or nothing, aloud, where the host forbids it.
fn engine(name: &str) -> Option<std::sync::Arc<dyn Io>> {
    match probe(name, 8, 1) {
        Ok(engine) => Some(engine),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// A directory on the disk that the build is on: the default one may be in memory.
fn directory() -> tempfile::TempDir {
    let beside: PathBuf = std::env::current_exe().unwrap().parent().unwrap().into();
    tempfile::tempdir_in(beside).unwrap()
}

fn open(directory: &tempfile::TempDir, direct: bool) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).custom_flags(if direct { libc::O_DIRECT } else { 0 });
    match options.open(directory.path().join("file")) {
        Err(cause) if direct && cause.raw_os_error() == Some(libc::EINVAL) => {
            eprintln!("skipped: no direct I/O in {}", directory.path().display());
            None
        }
        file => Some(file.unwrap()),
    }
}

/// Bytes that differ from slot to slot and from page to page.
fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..SLOT / 8).flat_map(|_| next()).collect()
}

fn fill(slot: *mut u8, bytes: &[u8]) {
    // SAFETY: called with slots of at least that many bytes, on which nothing is in flight.
    unsafe { slot.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

fn contents(slot: *mut u8) -> Vec<u8> {
    // SAFETY: called with slots of SLOT bytes, on which nothing is in flight.
    unsafe { std::slice::from_raw_parts(slot, SLOT as usize) }.to_vec()
}

fn request(token: u64, direction: Direction, file: &File, buffer: *mut u8) -> Request {
    Request { token, direction, fd: file.as_raw_fd(), offset: token * u64::from(SLOT), buffer, length: SLOT }
}

/// Pushes a request whose buffer and file the test keeps until the queue is dropped.
fn push(queue: &mut dyn Queue, request: Request) -> io::Result<()> {
    // SAFETY: every test declares its pool, buffers and files before its queue, so that they are dropped after it,
    // and leaves a buffer alone while a request on it is in flight.
    unsafe { queue.push(request) }
}

/// The completions of all that is in flight: only where nothing is does a wait come to nothing.
fn finish(queue: &mut dyn Queue) -> Vec<Completion> {
    let (mut completions, mut before) = (Vec::new(), None);
    while before != Some(completions.len()) {
        before = Some(completions.len());
        queue.wait(&mut completions).unwrap();
    }
    completions
}

fn one(queue: &mut dyn Queue, request: Request) -> io::Result<u32> {
    push(queue, request)?;
    let mut completions = finish(queue);
    assert_eq!(completions.len(), 1);
    completions.remove(0).result
}

fn bytes_survive_a_round_trip_buffered(engine: &dyn Io) {
    round_trip(engine, false);
}

fn bytes_survive_a_round_trip_direct(engine: &dyn Io) {
    round_trip(engine, true);
}

fn round_trip(engine: &dyn Io, direct: bool) {
    let directory = directory();
    let Some(file) = open(&directory, direct) else {
        return;
    };
    let pool = Pool::new(8, SLOT as usize).unwrap();
    let mut queue = engine.queue(8, &pool).unwrap();
    for direction in [Direction::Write, Direction::Read] {
        for token in 0..8 {
            let slot = pool.slot(usize::try_from(token).unwrap());
            fill(slot, &if direction == Direction::Write { pattern(token) } else { vec![0; SLOT as usize] });
            push(queue.as_mut(), request(token, direction, &file, slot)).unwrap();
        }
        let completions = finish(queue.as_mut());
        assert!(completions.iter().all(|completion| *completion.result.as_ref().unwrap() == SLOT));
    }
    for token in 0..8 {
        assert_eq!(contents(pool.slot(usize::try_from(token).unwrap())), pattern(token));
        let mut bytes = vec![0; SLOT as usize];
        File::open(directory.path().join("file"))
            .unwrap()
            .read_exact_at(&mut bytes, token * u64::from(SLOT))
            .unwrap();
        assert_eq!(bytes, pattern(token));
    }
}

fn a_full_queue_says_so(engine: &dyn Io) {
    let directory = directory();
    let file = open(&directory, false).unwrap();
    let pool = Pool::new(4, SLOT as usize).unwrap();
    let mut queue = engine.queue(3, &pool).unwrap();
    for token in 0..3 {
        let slot = pool.slot(usize::try_from(token).unwrap());
        push(queue.as_mut(), request(token, Direction::Write, &file, slot)).unwrap();
    }
    let refused = push(queue.as_mut(), request(3, Direction::Write, &file, pool.slot(3))).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(finish(queue.as_mut()).len(), 3);
    push(queue.as_mut(), request(3, Direction::Write, &file, pool.slot(3))).unwrap();
    assert_eq!(finish(queue.as_mut()).len(), 1);
}

fn a_thousand_requests_pass_a_depth_of_eight(engine: &dyn Io) {
    let directory = directory();
    let file = open(&directory, false).unwrap();
    let pool = Pool::new(8, 4096).unwrap();
    for slot in 0..8 {
        fill(pool.slot(slot), &vec![u8::try_from(slot).unwrap() + 1; 4096]);
    }
    let mut queue = engine.queue(8, &pool).unwrap();
    let mut free: Vec<u64> = (0..8).collect();
    let mut completions = Vec::new();
    let mut seen = BTreeSet::new();
    for number in 0..1000_u64 {
        while free.is_empty() {
            queue.wait(&mut completions).unwrap();
            for completion in completions.drain(..) {
                assert_eq!(completion.result.unwrap(), 4096);
                assert!(seen.insert(completion.token), "a token came back twice");
                free.push(completion.token % 8);
            }
        }
        let slot = free.pop().unwrap();
        let buffer = pool.slot(usize::try_from(slot).unwrap());
        let place =
            Request { offset: number * 4096, length: 4096, ..request(0, Direction::Write, &file, buffer) };
        push(queue.as_mut(), Request { token: number * 8 + slot, ..place }).unwrap();
    }
    seen.extend(finish(queue.as_mut()).iter().map(|completion| completion.token));
    assert_eq!(seen.len(), 1000);
    let mut bytes = Vec::new();
    (&file).seek(SeekFrom::Start(0)).unwrap();
    (&file).read_to_end(&mut bytes).unwrap();
    for token in seen {
        let page = usize::try_from(token / 8).unwrap() * 4096;
        assert!(bytes[page..page + 4096].iter().all(|byte| u64::from(*byte) == token % 8 + 1));
    }
}

fn reads_past_the_end_are_short(engine: &dyn Io) {
    let directory = directory();
    let file = open(&directory, false).unwrap();
    file.write_all_at(&[5; 1000], 0).unwrap();
    let pool = Pool::new(1, SLOT as usize).unwrap();
    let mut queue = engine.queue(1, &pool).unwrap();
    assert_eq!(one(queue.as_mut(), request(0, Direction::Read, &file, pool.slot(0))).unwrap(), 1000);
    assert_eq!(contents(pool.slot(0))[..1001], [[5_u8; 1000].as_slice(), &[0]].concat());
    assert_eq!(one(queue.as_mut(), request(1, Direction::Read, &file, pool.slot(0))).unwrap(), 0);
}

fn errors_are_handed_up(engine: &dyn Io) {
    let directory = directory();
    let file = open(&directory, false).unwrap();
    let pool = Pool::new(1, SLOT as usize).unwrap();
    let mut queue = engine.queue(2, &pool).unwrap();
    let good = request(0, Direction::Write, &file, pool.slot(0));
    let bad = one(queue.as_mut(), Request { fd: -1, ..good });
    assert_eq!(bad.unwrap_err().raw_os_error(), Some(libc::EBADF));
    let read_only = File::open(directory.path().join("file")).unwrap();
    let bad = one(queue.as_mut(), Request { fd: read_only.as_raw_fd(), ..good });
    assert_eq!(bad.unwrap_err().raw_os_error(), Some(libc::EBADF));
    if let Some(direct) = open(&directory, true) {
        let bad = one(queue.as_mut(), Request { fd: direct.as_raw_fd(), offset: 1, ..good });
        assert_eq!(bad.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
    assert_eq!(one(queue.as_mut(), good).unwrap(), SLOT, "the queue works on");
}

fn buffers_need_not_be_in_the_pool(engine: &dyn Io) {
    let directory = directory();
    let file = open(&directory, false).unwrap();
    let pool = Pool::new(1, 4096).unwrap();
    let other = Pool::new(2, SLOT as usize).unwrap();
    let mut queue = engine.queue(1, &pool).unwrap();
    fill(other.slot(0), &pattern(7));
    assert_eq!(one(queue.as_mut(), request(0, Direction::Write, &file, other.slot(0))).unwrap(), SLOT);
    assert_eq!(one(queue.as_mut(), request(0, Direction::Read, &file, other.slot(1))).unwrap(), SLOT);
    assert_eq!(contents(other.slot(1)), pattern(7));
}

/// After the queue was dropped the buffers are the test's again: what it puts there must not reach the disk.
fn dropping_waits_for_what_is_in_flight(engine: &dyn Io) {
    let directory = directory();
    let Some(file) = open(&directory, true).or_else(|| open(&directory, false)) else {
        return;
    };
    let pool = Pool::new(64, SLOT as usize).unwrap();
    for slot in 0..64 {
        fill(pool.slot(slot), &[1; SLOT as usize]);
    }
    let mut queue = engine.queue(64, &pool).unwrap();
    for token in 0..64 {
        let slot = pool.slot(usize::try_from(token).unwrap());
        push(queue.as_mut(), request(token, Direction::Write, &file, slot)).unwrap();
    }
    queue.wait(&mut Vec::new()).unwrap();
    drop(queue);
    for slot in 0..64 {
        fill(pool.slot(slot), &[2; SLOT as usize]);
    }
    file.sync_all().unwrap();
    let bytes = std::fs::read(directory.path().join("file")).unwrap();
    assert!(bytes.contains(&1));
    assert!(!bytes.contains(&2), "the disk read a buffer after the queue was dropped");
}

fn an_empty_queue_does_not_wait(engine: &dyn Io) {
    let pool = Pool::new(1, 4096).unwrap();
    let mut queue = engine.queue(1, &pool).unwrap();
    let mut completions = Vec::new();
    queue.wait(&mut completions).unwrap();
    assert!(completions.is_empty());
}

fn impossible_depths_are_refused(engine: &dyn Io) {
    let pool = Pool::new(1, 4096).unwrap();
    for depth in [0, MAX_QUEUE_DEPTH + 1, u32::MAX] {
        assert_eq!(engine.queue(depth, &pool).err().unwrap().kind(), io::ErrorKind::InvalidInput);
    }
    assert!(engine.queue(MAX_QUEUE_DEPTH, &pool).is_ok());
}

fn engines_work_from_several_threads(engine: &dyn Io) {
    let directory = directory();
    let file = &open(&directory, false).unwrap();
    thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let pool = Pool::new(2, SLOT as usize).unwrap();
                fill(pool.slot(0), &pattern(thread));
                let mut queue = engine.queue(2, &pool).unwrap();
                assert_eq!(
                    one(queue.as_mut(), request(thread, Direction::Write, file, pool.slot(0))).unwrap(),
                    SLOT
                );
                assert_eq!(
                    one(queue.as_mut(), request(thread, Direction::Read, file, pool.slot(1))).unwrap(),
                    SLOT
                );
                assert_eq!(contents(pool.slot(1)), pattern(thread));
            });
        }
    });
}

fn requests_share_a_descriptor(engine: &dyn Io) {
    let directory = directory();
    let file = open(&directory, false).unwrap();
    let pool = Pool::new(64, 4096).unwrap();
    let mut queue = engine.queue(64, &pool).unwrap();
    for token in 0..64 {
        let buffer = pool.slot(usize::try_from(token).unwrap());
        push(queue.as_mut(), Request { length: 4096, ..request(token, Direction::Write, &file, buffer) })
            .unwrap();
    }
    assert!(descriptors_of(&directory) <= 2);
    let mut completions = Vec::new();
    queue.wait(&mut completions).unwrap();
    assert!(descriptors_of(&directory) <= 2);
    completions.extend(finish(queue.as_mut()));
    assert!(completions.iter().all(|completion| completion.result.is_ok()));
    assert_eq!(descriptors_of(&directory), 1, "a descriptor outlives the requests on it");
}

/// How many descriptors of this process are of the file in `directory`.
fn descriptors_of(directory: &tempfile::TempDir) -> usize {
    let path = directory.path().join("file").canonicalize().unwrap();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    descriptors.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == path)).count()
}

fn a_descriptor_may_come_back_as_another_file(engine: &dyn Io) {
    let (old, new) = (directory(), directory());
    let mut descriptor = OwnedFd::from(open(&old, false).unwrap());
    let pool = Pool::new(1, SLOT as usize).unwrap();
    let mut queue = engine.queue(1, &pool).unwrap();
    for (content, directory) in [(1, &old), (2, &new)] {
        let file = open(directory, false).unwrap();
        rustix::io::dup2(&file, &mut descriptor).unwrap();
        fill(pool.slot(0), &[content; SLOT as usize]);
        let write =
            Request { fd: descriptor.as_raw_fd(), ..request(0, Direction::Write, &file, pool.slot(0)) };
        assert_eq!(one(queue.as_mut(), write).unwrap(), SLOT);
    }
    for (content, directory) in [(1, old), (2, new)] {
        assert_eq!(std::fs::read(directory.path().join("file")).unwrap(), [content; SLOT as usize]);
    }
}

/// A read that the kernel can only complete later, or cancel: nothing may be written to its buffer after the drop.
fn dropping_outlasts_a_pipe(name: &str) {
    let Some(engine) = engine(name) else { return };
    let directory = directory();
    let file = open(&directory, false).unwrap();
    let (reader, writer) = pipe();
    let pool = Pool::new(2, SLOT as usize).unwrap();
    let mut queue = engine.queue(2, &pool).unwrap();
    let from_pipe = Request { offset: 0, ..request(1, Direction::Read, &reader, pool.slot(0)) };
    push(queue.as_mut(), from_pipe).unwrap();
    push(queue.as_mut(), request(2, Direction::Write, &file, pool.slot(1))).unwrap();
    let mut completions = Vec::new();
    queue.wait(&mut completions).unwrap();
    assert_eq!((completions[0].token, completions.len()), (2, 1));
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        // Where the read was cancelled there is no reader any more.
        let _ = (&writer).write_all(&[9; 100]);
    });
    let started = Instant::now();
    drop(queue);
    drop(reader);
    let written = contents(pool.slot(0))[0] == 9;
    assert!(written == (started.elapsed() >= Duration::from_millis(50)), "neither waited for nor cancelled");
    late.join().unwrap();
    assert_eq!(contents(pool.slot(0))[0] == 9, written, "written to after the drop");
}

fn pipe() -> (File, File) {
    let (reader, writer) = io::pipe().unwrap();
    (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
}

#[test]
fn dropping_io_uring_outlasts_a_pipe() {
    dropping_outlasts_a_pipe("io-uring");
}

#[test]
fn dropping_tokio_uring_outlasts_a_pipe() {
    dropping_outlasts_a_pipe("tokio-uring");
}
