//! What the engine's parts cost by themselves: `cargo bench -p mapram-engine`.
//!
//! The engines write to /dev/null, which takes everything at once: what is left is the cost of the requests.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mapram_engine::PAGE_BYTES;
use mapram_engine::bitmap::{PageBitmap, PageRun};
use mapram_engine::io::{self, Direction, Io, Request};
use mapram_engine::memory::{Backing, Extent, FileRange, Memory, Piece, Process, ProcessRange, Region};
use mapram_engine::pool::Pool;
use mapram_engine::scan::nonzero_runs;
use mapram_engine::transfer::{BlockPlan, ChunkQueue, Content, Plan, Turn};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const CHUNK_BYTES: usize = 4 << 20;
const PAGE: usize = 4096;
const GIB: u64 = 1 << 30;

/// Every `period`th page of a chunk holds data, one byte `at` its offset; 0 for none.
fn chunk_with_data(period: usize, at: usize) -> Vec<u8> {
    let mut chunk = vec![0; CHUNK_BYTES];
    for page in (0..CHUNK_BYTES / PAGE).filter(|page| period > 0 && page % period == 0) {
        chunk[page * PAGE + at] = 1;
    }
    chunk
}

fn zero_scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("zero scan of 4 MiB");
    group.throughput(Throughput::Bytes(CHUNK_BYTES as u64));
    // The middle of a page is where the scan looks first, its end nearly last.
    let cases = [
        ("all zero", 0, 0),
        ("all data", 1, PAGE / 2),
        ("a byte at the end of each page", 1, PAGE - 9),
        ("every second page", 2, PAGE / 2),
    ];
    for (name, period, at) in cases {
        let chunk = chunk_with_data(period, at);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                nonzero_runs(black_box(&chunk), 0, |run| {
                    black_box(run);
                })
            });
        });
    }
    group.finish();
}

/// A channel of `length`-byte extents with gaps as long as themselves, in 1 GiB of one block.
fn plan_of_extents(memory: &Memory, length: u64) -> mapram_engine::Result<Plan> {
    let extent = |index: u64| Extent { offset: 2 * index * length, length, source: 0 };
    let block = BlockPlan { extents: (0..GIB / (2 * length)).map(extent).collect(), splits: Vec::new() };
    Plan::new(memory, CHUNK_BYTES as u64, vec![block], Content::Places)
}

fn plan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunks of a plan of 1 GiB");
    let Ok(file) = File::open("/dev/null").map(Arc::new) else {
        return eprintln!("left out: there is no /dev/null");
    };
    let backing = Backing::Shared { file: FileRange { file, path: None, offset: 0 }, process: None };
    let region = Region { block: 0, offset: 0, length: GIB, backing, page_bytes: PAGE_BYTES, writable: true };
    for (name, length) in [("64 KiB extents", 64 << 10), ("16 MiB extents", 16 << 20)] {
        let memory = Memory::new(vec![GIB], vec![region.clone()]);
        let Ok(plan) = memory.and_then(|memory| plan_of_extents(&memory, length)) else {
            return eprintln!("left out: the plan is refused");
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let chunks = ChunkQueue::new(&plan);
                let mut turn = Turn::default();
                std::iter::from_fn(|| chunks.next(&mut turn)).count()
            });
        });
    }
    group.finish();
}

fn bitmap(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("page bitmap of 1 GiB");
    let pages = GIB / PAGE_BYTES;
    for count in [1, 64] {
        let runs = || (0..pages).step_by(128).map(|first| PageRun { first, count });
        group.bench_function(BenchmarkId::new("set runs of", count), |bencher| {
            let bitmap = PageBitmap::new(pages);
            bencher.iter(|| runs().for_each(|run| bitmap.set(run)));
        });
        group.bench_function(BenchmarkId::new("find runs of", count), |bencher| {
            let bitmap = PageBitmap::new(pages);
            runs().for_each(|run| bitmap.set(run));
            bencher.iter(|| bitmap.runs(PageRun { first: 0, count: pages }, true).count());
        });
    }
    group.finish();
}

/// Writes every slot of the pool to /dev/null, all in flight at once.
fn write_all(io: &dyn Io, pool: &Pool, target: &File, bytes: u32, bencher: &mut criterion::Bencher<'_>) {
    let depth = u32::try_from(pool.slots()).unwrap_or(u32::MAX);
    let mut queue = match io.queue(depth, pool) {
        Ok(queue) => queue,
        Err(cause) => return eprintln!("left out: {} does not work here: {cause}", io.name()),
    };
    let mut completions = Vec::new();
    bencher.iter(|| {
        for slot in 0..pool.slots() {
            let request = Request {
                token: slot as u64,
                direction: Direction::Write,
                fd: target.as_raw_fd(),
                offset: 0,
                buffer: pool.slot(slot),
                length: bytes,
            };
            // SAFETY: the slot has that many bytes, nobody writes to it, and the pool and the file outlive the queue.
            let pushed = unsafe { queue.push(request) };
            assert!(pushed.is_ok(), "{pushed:?}");
        }
        while completions.len() < pool.slots() {
            let waited = queue.wait(&mut completions);
            assert!(waited.is_ok(), "{waited:?}");
        }
        assert!(completions.drain(..).all(|done| done.result.is_ok_and(|moved| moved == bytes)));
    });
}

fn engines(criterion: &mut Criterion) {
    const DEPTH: usize = 32;
    let mut group = criterion.benchmark_group("32 writes to /dev/null");
    group.throughput(Throughput::Elements(DEPTH as u64));
    let opened = OpenOptions::new().write(true).open("/dev/null");
    let (Ok(target), Ok(pool)) = (opened, Pool::new(DEPTH, CHUNK_BYTES)) else {
        return eprintln!("left out: there is no /dev/null, or no memory");
    };
    for io in io::NAMES.into_iter().flat_map(io::by_name) {
        for bytes in [4096, 4 << 20] {
            group.bench_function(BenchmarkId::new(io.name(), bytes), |bencher| {
                write_all(io.as_ref(), &pool, &target, bytes, bencher);
            });
        }
    }
    group.finish();
}

/// Shared memory without pages yet, as a restore finds it, and its mapping.
struct FreshMemory {
    memory: Memory,
    mapping: *mut std::ffi::c_void,
}

const FRESH_BYTES: usize = 256 << 20;

impl FreshMemory {
    fn new(by_process: bool) -> Result<Self, Box<dyn std::error::Error>> {
        let file = File::from(memfd_create("bench", MemfdFlags::CLOEXEC)?);
        file.set_len(FRESH_BYTES as u64)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let mapping = unsafe { mmap(std::ptr::null_mut(), FRESH_BYTES, protection, flags, &file, 0) }?;
        let process = if by_process {
            let process = Arc::new(Process::open(std::process::id().cast_signed())?);
            Some(ProcessRange { process, address: mapping.expose_provenance() as u64 })
        } else {
            None
        };
        let file = FileRange { file: Arc::new(file), path: None, offset: 0 };
        let region = Region {
            block: 0,
            offset: 0,
            length: FRESH_BYTES as u64,
            backing: Backing::Shared { file, process },
            page_bytes: PAGE_BYTES,
            writable: true,
        };
        let memory = Memory::new(vec![FRESH_BYTES as u64], vec![region])?;
        Ok(Self { memory, mapping })
    }

    fn fill(&self, chunk: &[u8]) {
        for offset in (0..FRESH_BYTES as u64).step_by(chunk.len()) {
            let piece = Piece { offset, length: chunk.len(), buffer_offset: 0 };
            // SAFETY: the piece is as long as the chunk, which nobody writes to.
            let written = unsafe { self.memory.write(0, &[piece], chunk.as_ptr()) };
            assert!(written.is_ok(), "{written:?}");
        }
    }
}

impl Drop for FreshMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody refers to its bytes.
        let _ = unsafe { munmap(self.mapping, FRESH_BYTES) };
    }
}

/// Into pages that the file gives us, and into pages that the process that has it mapped is charged for.
fn fill(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("filling 256 MiB of shared memory");
    group.throughput(Throughput::Bytes(FRESH_BYTES as u64)).sample_size(10);
    let chunk = chunk_with_data(1, 0);
    for (way, by_process) in [("by the file", false), ("by the process", true)] {
        match FreshMemory::new(by_process) {
            Ok(used) => {
                used.fill(&chunk);
                group.bench_function(BenchmarkId::new(way, "its pages there"), |bencher| {
                    bencher.iter(|| used.fill(&chunk));
                });
            }
            Err(cause) => return eprintln!("left out: no shared memory can be made: {cause}"),
        }
        group.bench_function(BenchmarkId::new(way, "no pages yet"), |bencher| {
            let fill = |fresh: Option<FreshMemory>| {
                if let Some(fresh) = &fresh {
                    fresh.fill(&chunk);
                }
                fresh
            };
            bencher.iter_batched(|| FreshMemory::new(by_process).ok(), fill, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(parts, zero_scan, plan, bitmap, engines, fill);
criterion_main!(parts);
