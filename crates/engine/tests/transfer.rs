//! Saves and restores of memory through every engine: what comes back is what went in.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

mod support;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mapram_engine::bitmap::PageBitmap;
use mapram_engine::image::{ImageReader, ImageWriter, PageArea, PageAreas};
use mapram_engine::io::{self, Completion, Files, Io, Queue, Request};
use mapram_engine::memory::{Backing, Copying, Extent, FileRange, Memory, Region};
use mapram_engine::pool::Pool;
use mapram_engine::transfer::{
    self, BlockPlan, Buffers, Content, Control, Options, Plan, RestoreJob, SaveJob,
};
use mapram_engine::{ErrorKind, Result};
use support::huge_pages::{HUGE_PAGE_BYTES, HugePages};
use support::{
    CHUNK_BYTES, Guest, How, MIB, Random, bitmap_of, plan, read, reader, restore, save, whole_plan,
};

const OPTIONS: Options = Options { queue_depth: 4, threads: 2 };

/// One block at the start of the file.
fn at_start(length: u64) -> PageAreas {
    PageAreas::new(vec![PageArea { offset: 0, length }]).unwrap()
}

fn engines() -> Vec<Arc<dyn Io>> {
    let works = |name: &&&str| match io::probe(name, 8, 1) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: the {name} engine does not work here: {error}");
            false
        }
    };
    io::NAMES.iter().filter(works).map(|name| io::by_name(name).unwrap()).collect()
}

fn how(channels: usize, chunk_bytes: u64) -> How {
    How { channels, chunk_bytes, options: OPTIONS, copying: Copying::Auto }
}

#[test]
fn what_is_saved_is_restored_by_every_engine() {
    let directory = tempfile::tempdir().unwrap();
    for (seed, io) in engines().into_iter().enumerate() {
        for (direct, channels, copying) in
            [(true, 1, Copying::Auto), (true, 7, Copying::Never), (false, 3, Copying::Always)]
        {
            let guest = Guest::new(&[3 * MIB, 4096, 5 * MIB + 8192]);
            guest.fill(&mut Random(seed as u64));
            let path = directory.path().join(format!("{}-{direct}-{channels}", io.name()));
            let image = ImageWriter::create(Arc::clone(&io), &path, false, direct).unwrap();
            let buffers = Buffers::default();
            // For fewer bytes, and on fewer threads, than come to be saved, as a guest that runs on may have it.
            let one_thread = Options { threads: 1, ..OPTIONS };
            buffers.prepare(one_thread, MIB, CHUNK_BYTES * (1 + channels as u64 % 2)).unwrap();
            let control = Control::default();
            let how = How { copying, ..how(channels, CHUNK_BYTES) };
            let allocated = guest.allocated();
            let (saved, bitmaps) = save(&guest, &image, how, &buffers, &control).unwrap();
            assert_eq!(guest.allocated(), allocated, "the guest's memory grew");
            match copying {
                Copying::Auto => {}
                Copying::Never => assert_eq!(saved.copied_bytes, 0),
                Copying::Always => assert!(saved.copied_bytes >= saved.image_bytes / 2),
            }
            image.sync().unwrap();
            image.publish().unwrap();

            let file = File::open(&path).unwrap();
            for (block, area) in guest.areas().areas().iter().enumerate() {
                assert!(read(&file, area.offset, area.length) == guest.bytes(block));
                assert_eq!(bitmaps[block].to_bytes(), bitmap_of(&guest.bytes(block)));
            }

            let used = Guest::new(&guest.lengths);
            used.fill(&mut Random(99));
            let image = ImageReader::open(file.as_fd(), &path, direct, guest.areas(), bitmaps).unwrap();
            restore(&image, &used.memory(), io.as_ref(), how).unwrap();
            for block in 0..guest.lengths.len() {
                assert!(used.bytes(block) == guest.bytes(block), "block {block} differs after a restore");
            }
        }
    }
}

/// Chunks of more requests than the queue takes: a slot must not be used again before all of its requests have ended.
#[test]
fn scattered_pages_survive_a_queue_that_is_always_full() {
    let directory = tempfile::tempdir().unwrap();
    for io in engines() {
        for (queue_depth, direct) in [(1, true), (1, false), (2, true), (4, false)] {
            let guest = Guest::new(&[32 * MIB]);
            guest.fill_scattered(&mut Random(3));
            let options = Options { queue_depth, threads: 1 };
            let how = How { channels: 1, chunk_bytes: 4 * MIB, options, copying: Copying::Auto };
            let path = directory.path().join(format!("{}-{queue_depth}-{direct}", io.name()));
            let image = ImageWriter::create(Arc::clone(&io), &path, false, direct).unwrap();
            let (_, bitmaps) = save(&guest, &image, how, &Buffers::default(), &Control::default()).unwrap();
            image.sync().unwrap();
            image.publish().unwrap();
            let file = File::open(&path).unwrap();
            let offset = guest.areas().file_offset(0, 0);
            assert!(read(&file, offset, 32 * MIB) == guest.bytes(0), "{path:?} is wrong");
            let target = Guest::new(&[32 * MIB]);
            let image = reader(&file, guest.areas(), bitmaps);
            restore(&image, &target.memory(), io.as_ref(), how).unwrap();
            assert!(target.bytes(0) == guest.bytes(0), "memory restored from {path:?} is wrong");
        }
    }
}

/// A save of a part, as one of changed pages only is: what is not planned keeps its bits and its bytes in the image.
#[test]
fn unplanned_pages_stay_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let guest = Guest::new(&[MIB]);
    guest.files[0].write_all_at(&[1; 16 * 4096], 0).unwrap();
    let memory = guest.memory();
    let path = directory.path().join("image");
    let image = ImageWriter::create(io::auto(8, 1).unwrap(), &path, false, false).unwrap();
    let (_, bitmaps) =
        save(&guest, &image, how(1, CHUNK_BYTES), &Buffers::default(), &Control::default()).unwrap();
    // Pages 2, 4 and 6 change, but only 2 and 6 are planned; 6 becomes zero.
    for (page, byte) in [(2, 2), (4, 4), (6, 0)] {
        guest.files[0].write_all_at(&[byte; 4096], page * 4096).unwrap();
    }
    let source = memory.scan(0).unwrap()[0].source;
    let extents = [2, 6].map(|page| Extent { offset: page * 4096, length: 4096, source }).to_vec();
    let blocks = vec![BlockPlan { extents, splits: Vec::new() }];
    let job = SaveJob {
        memory: &memory,
        plan: &Plan::new(&memory, CHUNK_BYTES, blocks, Content::SomeData).unwrap(),
        areas: &guest.areas(),
        bitmaps: &bitmaps,
        options: OPTIONS,
        copying: Copying::Auto,
        buffers: &Buffers::default(),
    };
    assert_eq!(job.run(&image, &Control::default()).unwrap().image_bytes, 4096);
    image.sync().unwrap();
    image.publish().unwrap();
    let bytes = read(&File::open(&path).unwrap(), guest.areas().file_offset(0, 0), 8 * 4096);
    let first_bytes: Vec<u8> = bytes.chunks(4096).map(|page| page[0]).collect();
    assert_eq!(first_bytes, [1, 1, 2, 1, 1, 1, 1, 1]);
    assert_eq!(bitmaps[0].to_bytes()[..3], [0b1011_1111, 0xff, 0]);
}

#[test]
fn measuring_counts_what_a_save_writes() {
    let directory = tempfile::tempdir().unwrap();
    let guest = Guest::new(&[3 * MIB, MIB]);
    guest.fill(&mut Random(7));
    let (memory, control) = (guest.memory(), Control::default());
    let measured = transfer::measure(&memory, &plan(&memory, 3, CHUNK_BYTES), 2, &control).unwrap();
    let path = directory.path().join("image");
    let image = ImageWriter::create(io::auto(8, 1).unwrap(), &path, false, true).unwrap();
    let (saved, _) = save(&guest, &image, how(3, CHUNK_BYTES), &Buffers::default(), &control).unwrap();
    assert_eq!(saved.image_bytes, measured);
}

#[test]
fn bitmaps_of_other_blocks_are_refused_before_anything_is_cleared() {
    let guest = Guest::new(&[MIB]);
    guest.fill(&mut Random(8));
    let memory = guest.memory();
    let before = guest.bytes(0);
    for bitmaps in [vec![], vec![PageBitmap::new(255)], vec![PageBitmap::new(257)]] {
        let error = transfer::clear(&memory, &bitmaps, 1, &Control::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
    }
    assert!(guest.bytes(0) == before);
}

#[test]
fn clearing_can_be_cancelled_and_leaves_zero_pages_allocated() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let guest = Guest::new(&[8 * MIB]);
    guest.files[0].write_all_at(&vec![0; 8 << 20], 0).unwrap();
    let memory = guest.memory();
    let blocks = guest.files[0].metadata().unwrap().blocks();
    let control = Control::default();
    assert_eq!(transfer::clear(&memory, &[PageBitmap::new(2048)], 2, &control).unwrap(), 0);
    assert_eq!(guest.files[0].metadata().unwrap().blocks(), blocks);
    control.cancel();
    let outcome = transfer::clear(&memory, &[PageBitmap::new(2048)], 2, &control);
    assert_eq!(outcome.unwrap_err().kind, ErrorKind::Cancelled);
}

#[test]
fn stale_bytes_under_clear_bits_are_not_restored() {
    let guest = Guest::new(&[MIB]);
    guest.fill(&mut Random(1));
    let image = guest.files[0].try_clone().unwrap();
    // A page in the middle of data loses its bit, as a live save of QEMU leaves it: its old bytes are still there.
    let bitmap = PageBitmap::from_bytes(&bitmap_of(&guest.bytes(0)), MIB / 4096);
    let mut bytes = bitmap.to_bytes();
    let stale = (1..256).find(|page| bytes[page / 8] & (1 << (page % 8)) != 0).unwrap();
    bytes[stale / 8] &= !(1 << (stale % 8));
    let used = Guest::new(&[MIB]);
    let memory = used.memory();
    let image = reader(&image, at_start(MIB), vec![PageBitmap::from_bytes(&bytes, MIB / 4096)]);
    restore(&image, &memory, &io::Blocking, how(1, CHUNK_BYTES)).unwrap();
    let restored = used.bytes(0);
    assert!(restored[stale * 4096..(stale + 1) * 4096].iter().all(|byte| *byte == 0));
}

/// Memory in huge pages: long runs are read into it directly and the others through the pool, but never a page without a
/// bit. Runs are near each other and far apart, cross chunks and a region's end, and the image holds stale bytes elsewhere.
#[test]
fn only_set_pages_reach_memory_in_huge_pages() {
    let Some(_pages) = HugePages::reserve(8) else {
        return;
    };
    let length = 4 * HUGE_PAGE_BYTES;
    let image = File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let content: Vec<u8> = (0..length / 8).flat_map(|word| (word + 1).to_le_bytes()).collect();
    image.write_all_at(&content, 0).unwrap();
    // The first region ends in front of page 512, the first chunk in front of page 1024.
    let runs = [0..64_usize, 72..200, 300..301, 310..330, 400..570, 600..663, 1000..2048];
    // A run is cut where a region ends.
    let straight = [0..64, 72..200, 400..512, 1024..2048];
    let mut bitmap = vec![0_u8; 256];
    for page in runs.iter().cloned().flatten() {
        bitmap[page / 8] |= 1 << (page % 8);
    }
    let bitmaps = || vec![PageBitmap::from_bytes(&bitmap, length / 4096)];
    let image = reader(&image, at_start(length), bitmaps());
    for io in engines() {
        let file = huge_file(length);
        let region = |offset, length| Region {
            block: 0,
            offset,
            length,
            backing: Backing::Shared {
                file: FileRange { file: Arc::clone(&file), path: None, offset },
                process: None,
            },
            writable: true,
            page_bytes: HUGE_PAGE_BYTES,
        };
        let regions = vec![region(0, HUGE_PAGE_BYTES), region(HUGE_PAGE_BYTES, length - HUGE_PAGE_BYTES)];
        let memory = Memory::new(vec![length], regions).unwrap();
        assert!(memory.direct_address(0, 0, length).unwrap().is_none(), "it is not all in one region");
        let recording = Recording { io: Arc::clone(&io), outside: Arc::default() };
        restore(&image, &memory, &recording, how(2, 4 * MIB)).unwrap();
        let restored = read(&file, 0, length);
        for page in 0..2048 {
            let bytes = page * 4096..(page + 1) * 4096;
            let is_set = runs.iter().any(|run| run.contains(&page));
            let wanted = if is_set { &content[bytes.clone()] } else { &[0; 4096] };
            assert!(&restored[bytes] == wanted, "page {page} is wrong by {}", io.name());
        }
        let mut outside = recording.outside.lock().unwrap().clone();
        outside.sort_by_key(|pages| pages.start);
        assert_eq!(outside, straight, "{}", io.name());
    }
}

fn huge_file(length: u64) -> Arc<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
    let file = File::from(rustix::fs::memfd_create("guest", flags).unwrap());
    file.set_len(length).unwrap();
    Arc::new(file)
}

type Log = Arc<Mutex<Vec<std::ops::Range<usize>>>>;

/// An engine that notes which pages of the file are read to addresses outside of the pool.
#[derive(Debug)]
struct Recording {
    io: Arc<dyn Io>,
    outside: Log,
}

impl Files for Recording {}

impl Io for Recording {
    fn name(&self) -> &'static str {
        self.io.name()
    }

    fn queue<'pool>(&self, depth: u32, pool: &'pool Pool) -> std::io::Result<Box<dyn Queue + 'pool>> {
        let queue = self.io.queue(depth, pool)?;
        Ok(Box::new(RecordingQueue { queue, pool, outside: Arc::clone(&self.outside) }))
    }
}

struct RecordingQueue<'pool> {
    queue: Box<dyn Queue + 'pool>,
    pool: &'pool Pool,
    outside: Log,
}

impl Queue for RecordingQueue<'_> {
    unsafe fn push(&mut self, request: Request) -> std::io::Result<()> {
        let length = request.length as usize;
        if !self.pool.contains(request.buffer, length) {
            let first = usize::try_from(request.offset).unwrap() / 4096;
            self.outside.lock().unwrap().push(first..first + length / 4096);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { self.queue.push(request) }
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) -> std::io::Result<()> {
        self.queue.wait(completions)
    }
}

#[test]
fn an_image_that_ends_too_early_is_invalid() {
    for length in [MIB - 4096 - 100, MIB - 4096, MIB - 100] {
        let guest = Guest::new(&[MIB]);
        let image = File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        image.set_len(length).unwrap();
        let memory = guest.memory();
        let image = reader(&image, at_start(MIB), vec![PageBitmap::from_bytes(&[0xff; 32], MIB / 4096)]);
        for io in engines() {
            let error = restore(&image, &memory, io.as_ref(), how(1, CHUNK_BYTES)).unwrap_err();
            assert_eq!(error.path.as_deref(), Some(Path::new("the image")));
            assert_eq!((error.kind, error.offset.is_some()), (ErrorKind::ImageInvalid, true), "{length}");
        }
    }
}

/// No page of the image is written to what was cut.
#[test]
fn memory_that_was_cut_is_not_restored() {
    let image = File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let guest = Guest::new(&[MIB]);
    let memory = guest.memory();
    guest.files[0].set_len(MIB / 2).unwrap();
    let bitmaps = || vec![PageBitmap::new(MIB / 4096)];
    let reader = reader(&image, at_start(MIB), bitmaps());
    let restored = restore(&reader, &memory, &io::Blocking, how(1, CHUNK_BYTES)).map(drop);
    let cleared = transfer::clear(&memory, &bitmaps(), 1, &Control::default()).map(drop);
    for outcome in [restored, cleared] {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io, "{error}");
        assert!(error.message.contains("become shorter"), "{error}");
    }
}

#[test]
fn buffers_are_made_for_possible_transfers_only() {
    let buffers = Buffers::default();
    for (options, chunk_bytes) in [
        (Options { threads: 0, ..OPTIONS }, CHUNK_BYTES),
        (Options { threads: usize::MAX, ..OPTIONS }, CHUNK_BYTES),
        (Options { queue_depth: 0, ..OPTIONS }, CHUNK_BYTES),
        (OPTIONS, 0),
        (OPTIONS, u64::MAX),
    ] {
        let error = buffers.prepare(options, MIB, chunk_bytes).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage, "{options:?}, {chunk_bytes}");
    }
}

#[test]
fn a_cancelled_save_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let guest = Guest::new(&[8 * MIB]);
    guest.fill(&mut Random(5));
    let io = io::auto(8, 1).unwrap();
    let image = ImageWriter::create(io, &directory.path().join("image"), false, true).unwrap();
    let control = Control::default();
    control.cancel();
    let outcome = save(&guest, &image, how(2, CHUNK_BYTES), &Buffers::default(), &control);
    assert_eq!(outcome.unwrap_err().kind, ErrorKind::Cancelled);
    image.discard().unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// An image of zeros whose pages all have bits.
fn image_of_zeros(length: u64) -> ImageReader {
    let image = File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    image.set_len(length).unwrap();
    let bitmap =
        PageBitmap::from_bytes(&vec![0xff; usize::try_from(length / 4096 / 8).unwrap()], length / 4096);
    reader(&image, at_start(length), vec![bitmap])
}

/// Restores all of the image, under `control`.
fn restore_under(control: &Control, image: &ImageReader, memory: &Memory, io: &dyn Io) -> Result<u64> {
    let plan = whole_plan(memory, 1, CHUNK_BYTES);
    RestoreJob { image, memory, plan: &plan, options: OPTIONS, copying: Copying::Auto }.run(io, control)
}

/// What cannot be set up has written nothing, so the guest's memory is as it was: neither where no thread can, nor where the last
/// one cannot, long after the first.
#[test]
fn a_restore_that_cannot_be_set_up_has_not_begun_to_write() {
    let guest = Guest::new(&[MIB]);
    guest.fill(&mut Random(4));
    let before = guest.bytes(0);
    let (image, memory, control) = (image_of_zeros(MIB), guest.memory(), Control::default());
    for possible in [0, 1] {
        let io = FewQueues { possible, made: AtomicUsize::new(0) };
        let error = restore_under(&control, &image, &memory, &io).unwrap_err();
        assert_eq!(error.kind, ErrorKind::HostUnsupported);
        assert_eq!(control.progress().writing_for, None);
        assert!(guest.bytes(0) == before);
    }
    let control = Control::default();
    restore_under(&control, &image, &memory, &io::Blocking).unwrap();
    assert!(control.progress().writing_for.is_some());
}

/// Memory in huge pages is mapped for that, which is found out before other memory is written.
#[test]
fn a_restore_whose_memory_cannot_be_mapped_has_not_begun_to_write() {
    let Some(_pages) = HugePages::reserve(2) else {
        return;
    };
    let small = Guest::new(&[HUGE_PAGE_BYTES]);
    small.fill(&mut Random(6));
    let before = small.bytes(0);
    let huge = huge_file(HUGE_PAGE_BYTES);
    let read_only = File::open(format!("/proc/self/fd/{}", huge.as_raw_fd())).unwrap();
    let region = |file, offset, page_bytes| Region {
        block: 0,
        offset,
        length: HUGE_PAGE_BYTES,
        backing: Backing::Shared { file: FileRange { file, path: None, offset: 0 }, process: None },
        writable: true,
        page_bytes,
    };
    let first = region(Arc::clone(&small.files[0]), 0, 4096);
    let second = region(Arc::new(read_only), HUGE_PAGE_BYTES, HUGE_PAGE_BYTES);
    let memory = Memory::new(vec![2 * HUGE_PAGE_BYTES], vec![first, second]).unwrap();
    let (image, control) = (image_of_zeros(2 * HUGE_PAGE_BYTES), Control::default());
    let error = restore_under(&control, &image, &memory, &io::Blocking).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Permission, "{error}");
    assert_eq!(control.progress().writing_for, None);
    assert!(small.bytes(0) == before);
}

/// Who owns the transfer may let the guest run then, though the storage keeps what is in flight.
#[test]
fn a_failure_is_told_before_what_is_in_flight_has_ended() {
    let guest = Guest::new(&[MIB]);
    let control = Arc::new(Control::default());
    let io = Stuck { control: Arc::clone(&control), is_told: Arc::new(AtomicBool::new(true)) };
    let error = restore_under(&control, &image_of_zeros(MIB), &guest.memory(), &io).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io);
    assert!(io.is_told.load(Ordering::SeqCst));
}

/// A file that is read by direct I/O takes no other places.
#[test]
fn what_a_short_result_has_left_goes_on_at_a_page() {
    let guest = Guest::new(&[MIB]);
    guest.fill(&mut Random(9));
    let io = Short { offsets: Arc::default() };
    restore_under(&Control::default(), &image_of_zeros(MIB), &guest.memory(), &io).unwrap();
    assert!(guest.bytes(0).iter().all(|byte| *byte == 0));
    let offsets = io.offsets.lock().unwrap();
    assert!(offsets.len() > 100 && offsets.iter().all(|offset| offset % 4096 == 0), "{offsets:?}");
}

/// So the kernel ends a request for which it would have needed a thread that it cannot start.
#[test]
fn a_request_for_which_the_kernel_has_no_thread_is_no_fault_of_the_disk() {
    let (guest, image) = (Guest::new(&[MIB]), image_of_zeros(MIB));
    let error = restore_under(&Control::default(), &image, &guest.memory(), &Cancelling).unwrap_err();
    assert_eq!(error.kind, ErrorKind::HostUnsupported);
    assert!(error.message.contains("pids.max"), "{error}");
}

/// An engine whose requests are all cancelled.
#[derive(Debug)]
struct Cancelling;

impl Files for Cancelling {}

impl Io for Cancelling {
    fn name(&self) -> &'static str {
        "cancelling"
    }

    fn queue<'pool>(&self, _: u32, _: &'pool Pool) -> std::io::Result<Box<dyn Queue + 'pool>> {
        Ok(Box::new(CancellingQueue(Vec::new())))
    }
}

struct CancellingQueue(Vec<u64>);

impl Queue for CancellingQueue {
    unsafe fn push(&mut self, request: Request) -> std::io::Result<()> {
        self.0.push(request.token);
        Ok(())
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) -> std::io::Result<()> {
        let result = || Err(std::io::Error::from_raw_os_error(libc::ECANCELED));
        completions.extend(self.0.drain(..).map(|token| Completion { token, result: result() }));
        Ok(())
    }
}

/// An engine that can be set up for so many threads, and fails for the next one after a while.
#[derive(Debug)]
struct FewQueues {
    possible: usize,
    made: AtomicUsize,
}

impl Files for FewQueues {}

impl Io for FewQueues {
    fn name(&self) -> &'static str {
        "few"
    }

    fn queue<'pool>(&self, depth: u32, pool: &'pool Pool) -> std::io::Result<Box<dyn Queue + 'pool>> {
        if self.made.fetch_add(1, Ordering::SeqCst) < self.possible {
            return io::Blocking.queue(depth, pool);
        }
        std::thread::sleep(Duration::from_millis(200));
        Err(std::io::Error::from_raw_os_error(libc::EMFILE))
    }
}

/// An engine whose first request fails, and that ends no other one before the transfer's owner knows.
#[derive(Debug)]
struct Stuck {
    control: Arc<Control>,
    is_told: Arc<AtomicBool>,
}

impl Files for Stuck {}

impl Io for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    fn queue<'pool>(&self, _: u32, _: &'pool Pool) -> std::io::Result<Box<dyn Queue + 'pool>> {
        let (control, is_told) = (Arc::clone(&self.control), Arc::clone(&self.is_told));
        Ok(Box::new(StuckQueue { tokens: Vec::new(), control, is_told }))
    }
}

struct StuckQueue {
    tokens: Vec<u64>,
    control: Arc<Control>,
    is_told: Arc<AtomicBool>,
}

impl Queue for StuckQueue {
    unsafe fn push(&mut self, request: Request) -> std::io::Result<()> {
        self.tokens.push(request.token);
        Ok(())
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) -> std::io::Result<()> {
        let result = Err(std::io::Error::from_raw_os_error(libc::EIO));
        completions.push(Completion { token: self.tokens.remove(0), result });
        Ok(())
    }
}

impl Drop for StuckQueue {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.control.progress().stopping && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.is_told.fetch_and(self.control.progress().stopping, Ordering::SeqCst);
    }
}

/// An engine that moves a page and a half at once, and notes where in the file.
#[derive(Debug)]
struct Short {
    offsets: Arc<Mutex<Vec<u64>>>,
}

impl Files for Short {}

impl Io for Short {
    fn name(&self) -> &'static str {
        "short"
    }

    fn queue<'pool>(&self, depth: u32, pool: &'pool Pool) -> std::io::Result<Box<dyn Queue + 'pool>> {
        let queue = io::Blocking.queue(depth, pool)?;
        Ok(Box::new(ShortQueue { queue, offsets: Arc::clone(&self.offsets) }))
    }
}

struct ShortQueue<'pool> {
    queue: Box<dyn Queue + 'pool>,
    offsets: Arc<Mutex<Vec<u64>>>,
}

impl Queue for ShortQueue<'_> {
    unsafe fn push(&mut self, request: Request) -> std::io::Result<()> {
        self.offsets.lock().unwrap().push(request.offset);
        // SAFETY: the caller's promise is passed on, for a part.
        unsafe { self.queue.push(Request { length: request.length.min(6144), ..request }) }
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) -> std::io::Result<()> {
        self.queue.wait(completions)
    }
}
