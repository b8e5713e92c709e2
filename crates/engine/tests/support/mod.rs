//! Guest memory made of memfds, plans for it, and the truth about its pages.
#![allow(
    dead_code,
    missing_docs,
    reason = "shared by several test programs, each of which uses a part of it"
)]
#![allow(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

pub mod huge_pages;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use mapram_engine::bitmap::PageBitmap;
use mapram_engine::image::{ImageReader, ImageWriter, PageArea, PageAreas};
use mapram_engine::io::Io;
use mapram_engine::memory::{Backing, Copying, Extent, FileRange, Memory, Region};
use mapram_engine::transfer::{
    BlockPlan, Buffers, Content, Control, Options, Plan, RestoreJob, SaveJob, Saved,
};
use mapram_engine::{PAGE_BYTES, Result};
use rustix::fs::{MemfdFlags, memfd_create};

pub const MIB: u64 = 1 << 20;
pub const CHUNK_BYTES: u64 = 256 << 10;

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Blocks of memory and the files that hold them.
pub struct Guest {
    pub files: Vec<Arc<File>>,
    pub lengths: Vec<u64>,
}

impl Guest {
    /// Blocks of the given lengths in bytes, all holes.
    pub fn new(lengths: &[u64]) -> Self {
        let file = |&length: &u64| {
            let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(length).unwrap();
            Arc::new(file)
        };
        Self { files: lengths.iter().map(file).collect(), lengths: lengths.to_vec() }
    }

    /// Writes runs of random pages, of pages that are zero but there, and leaves holes.
    pub fn fill(&self, random: &mut Random) {
        for (file, &length) in self.files.iter().zip(&self.lengths) {
            let mut page = 0;
            while page < length / PAGE_BYTES {
                let count = (1 + random.below(40)).min(length / PAGE_BYTES - page);
                let kind = random.below(4);
                for index in page..page + count {
                    let fill = random.next();
                    match kind {
                        0 => {}
                        1 => file.write_all_at(&[0; 4096], index * PAGE_BYTES).unwrap(),
                        _ => file.write_all_at(&fill.to_le_bytes().repeat(512), index * PAGE_BYTES).unwrap(),
                    }
                }
                page += count;
            }
        }
    }

    /// Writes single pages so far apart that each becomes a request of its own, more than a queue takes at once.
    pub fn fill_scattered(&self, random: &mut Random) {
        for (file, &length) in self.files.iter().zip(&self.lengths) {
            for page in (0..length / PAGE_BYTES).step_by(18) {
                file.write_all_at(&random.next().to_le_bytes().repeat(512), page * PAGE_BYTES).unwrap();
            }
        }
    }

    pub fn memory(&self) -> Memory {
        let region = |(block, file): (usize, &Arc<File>)| Region {
            block,
            offset: 0,
            length: self.lengths[block],
            backing: Backing::Shared {
                file: FileRange { file: Arc::clone(file), path: None, offset: 0 },
                process: None,
            },
            writable: true,
            page_bytes: PAGE_BYTES,
        };
        Memory::new(self.lengths.clone(), self.files.iter().enumerate().map(region).collect()).unwrap()
    }

    /// 512-byte blocks that the files take.
    pub fn allocated(&self) -> u64 {
        self.files.iter().map(|file| file.metadata().unwrap().blocks()).sum()
    }

    pub fn bytes(&self, block: usize) -> Vec<u8> {
        read(&self.files[block], 0, self.lengths[block])
    }

    /// Areas in an image, one block behind the other on a grid of 1 MiB.
    pub fn areas(&self) -> PageAreas {
        let mut end = 0_u64;
        let area = |&length: &u64| {
            let offset = (end + 1).next_multiple_of(MIB);
            end = offset + length;
            PageArea { offset, length }
        };
        PageAreas::new(self.lengths.iter().map(area).collect()).unwrap()
    }

    /// The bitmaps of an image that holds nothing yet.
    pub fn empty_bitmaps(&self) -> Vec<PageBitmap> {
        self.lengths.iter().map(|length| PageBitmap::new(length / PAGE_BYTES)).collect()
    }
}

/// How a transfer of a test runs.
#[derive(Debug, Clone, Copy)]
pub struct How {
    pub channels: usize,
    pub chunk_bytes: u64,
    pub options: Options,
    pub copying: Copying,
}

/// Saves all of the guest; returns the bitmaps too.
pub fn save(
    guest: &Guest,
    image: &ImageWriter,
    how: How,
    buffers: &Buffers,
    control: &Control,
) -> Result<(Saved, Vec<PageBitmap>)> {
    let memory = guest.memory();
    let bitmaps = guest.empty_bitmaps();
    let job = SaveJob {
        memory: &memory,
        plan: &plan(&memory, how.channels, how.chunk_bytes),
        areas: &guest.areas(),
        bitmaps: &bitmaps,
        options: how.options,
        copying: how.copying,
        buffers,
    };
    job.run(image, control).map(|saved| (saved, bitmaps))
}

/// An image in `file`, read without direct I/O.
pub fn reader(file: &File, areas: PageAreas, bitmaps: Vec<PageBitmap>) -> ImageReader {
    ImageReader::open(file.as_fd(), Path::new("the image"), false, areas, bitmaps).unwrap()
}

/// Restores all of the image.
pub fn restore(image: &ImageReader, memory: &Memory, io: &dyn Io, how: How) -> Result<u64> {
    let plan = whole_plan(memory, how.channels, how.chunk_bytes);
    let job = RestoreJob { image, memory, plan: &plan, options: how.options, copying: how.copying };
    job.run(io, &Control::default())
}

/// A plan for all data that gives each channel as many cells of the chunk grid.
pub fn plan(memory: &Memory, channels: usize, chunk_bytes: u64) -> Plan {
    let block = |block: usize| BlockPlan {
        extents: memory.scan(block).unwrap(),
        splits: splits(memory.blocks()[block], channels, chunk_bytes),
    };
    let blocks = (0..memory.blocks().len()).map(block).collect();
    Plan::new(memory, chunk_bytes, blocks, Content::AllData).unwrap()
}

/// A plan for a restore that covers every block whole.
pub fn whole_plan(memory: &Memory, channels: usize, chunk_bytes: u64) -> Plan {
    let block = |&length: &u64| BlockPlan {
        extents: vec![Extent { offset: 0, length, source: 0 }],
        splits: splits(length, channels, chunk_bytes),
    };
    let blocks = memory.blocks().iter().map(block).collect();
    Plan::new(memory, chunk_bytes, blocks, Content::Places).unwrap()
}

fn splits(length: u64, channels: usize, chunk_bytes: u64) -> Vec<u64> {
    let cells = length.div_ceil(chunk_bytes);
    let split = |channel: u64| (cells * channel / channels as u64 * chunk_bytes).min(length);
    (1..channels as u64).map(split).collect()
}

pub fn read(file: &File, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    let end = file.metadata().unwrap().len().saturating_sub(offset).min(length);
    file.read_exact_at(&mut bytes[..usize::try_from(end).unwrap()], offset).unwrap();
    bytes
}

/// The bitmap that a save of `bytes` must return.
pub fn bitmap_of(bytes: &[u8]) -> Vec<u8> {
    let pages = bytes.len() / 4096;
    let mut bitmap = vec![0_u8; pages.div_ceil(64) * 8];
    for (page, content) in bytes.chunks(4096).enumerate() {
        if content.iter().any(|byte| *byte != 0) {
            bitmap[page / 8] |= 1 << (page % 8);
        }
    }
    bitmap
}
