//! Guest memory made of memfds, plans for it, and the truth about its pages.
#![allow(
    dead_code,
    missing_docs,
    reason = "shared by several test programs, each of which uses a part of it"
)]
#![allow(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

pub mod huge_pages;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mapram_engine::PAGE_BYTES;
use mapram_engine::memory::{Backing, FileRange, Memory, Region};
use mapram_engine::transfer::{Place, Plan, Range};
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
            backing: Backing::SharedFile {
                file: FileRange { file: Arc::clone(file), path: None, offset: 0 },
                process: None,
            },
            writable: true,
            page_bytes: PAGE_BYTES,
        };
        Memory::new(self.lengths.clone(), self.files.iter().enumerate().map(region).collect()).unwrap()
    }

    pub fn bytes(&self, block: usize) -> Vec<u8> {
        read(&self.files[block], 0, self.lengths[block])
    }

    /// Places in an image, one block behind the other on a grid of 1 MiB.
    pub fn places(&self) -> Vec<Place> {
        let mut end = 0_u64;
        let place = |&length: &u64| {
            let pages_offset = (end + 1).next_multiple_of(MIB);
            end = pages_offset + length;
            Place { pages_offset, length }
        };
        self.lengths.iter().map(place).collect()
    }
}

/// A plan that gives each channel whole cells of the chunk grid in turn.
pub fn plan(memory: &Memory, channels: usize, chunk_bytes: u64) -> Plan {
    let mut plan = Plan { chunk_bytes, channels: vec![Vec::new(); channels] };
    for block in 0..memory.blocks().len() {
        for extent in memory.scan(block).unwrap() {
            let mut offset = extent.offset;
            while offset < extent.offset + extent.length {
                let cell = offset / chunk_bytes;
                let end = ((cell + 1) * chunk_bytes).min(extent.offset + extent.length);
                let channel = usize::try_from(cell).unwrap() % channels;
                plan.channels[channel].push(Range {
                    block,
                    offset,
                    length: end - offset,
                    source: extent.source,
                });
                offset = end;
            }
        }
    }
    plan
}

/// A plan for a restore that covers every block whole.
pub fn whole_plan(places: &[Place], channels: usize, chunk_bytes: u64) -> Plan {
    let mut plan = Plan { chunk_bytes, channels: vec![Vec::new(); channels] };
    for (block, place) in places.iter().enumerate() {
        for offset in (0..place.length).step_by(usize::try_from(chunk_bytes).unwrap()) {
            let length = chunk_bytes.min(place.length - offset);
            let channel = usize::try_from(offset / chunk_bytes).unwrap() % channels;
            plan.channels[channel].push(Range { block, offset, length, source: 0 });
        }
    }
    plan
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
