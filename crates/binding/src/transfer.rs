//! Jobs that read an image, or only memory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use mapram_engine::bitmap::PageBitmap;
use mapram_engine::image::{ImageReader, PageAreas};
use mapram_engine::transfer::{self, CompareJob, Content, Plan, RestoreJob};
use mapram_engine::{Error, ErrorKind, PAGE_BYTES, Result};
use mapram_host::descriptor;
use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;

use crate::convert::{
    PageArea, TransferOptions, TransferPlan, blocks, copying, engine, integer, number, options, page_areas,
};
use crate::job::{Job, JobOutcome};
use crate::memory::GuestMemory;

/// An image whose structure was checked.
#[napi(object)]
pub struct ImageSource {
    /// Descriptor of the file; it stays the caller's.
    pub fd: i32,
    /// What errors call the file.
    pub path: String,
    /// Whether its pages are read by direct I/O.
    pub direct: bool,
    /// Where each block's pages are.
    pub areas: Vec<PageArea>,
    /// Each block's page bitmap.
    pub bitmaps: Vec<Uint8Array>,
}

/// The same as the engine wants it; JavaScript's arrays are read here, on its thread.
struct Source {
    file: Result<OwnedFd>,
    path: PathBuf,
    direct: bool,
    areas: Result<PageAreas>,
    bitmaps: Vec<Vec<u8>>,
}

impl From<ImageSource> for Source {
    fn from(ImageSource { fd, path, direct, areas, bitmaps }: ImageSource) -> Self {
        Self {
            file: descriptor::duplicate(fd),
            path: path.into(),
            direct,
            areas: page_areas(&areas),
            bitmaps: copies(&bitmaps),
        }
    }
}

impl Source {
    fn open(self) -> Result<ImageReader> {
        let areas = self.areas?;
        let lengths: Vec<u64> = areas.areas().iter().map(|area| area.length).collect();
        let bitmaps = page_bitmaps(&self.bitmaps, &lengths)?;
        ImageReader::open(self.file?.as_fd(), &self.path, self.direct, areas, bitmaps)
    }
}

/// A job that makes every page with a clear bit read zero and then puts the image's pages in place.
#[napi(catch_unwind)]
pub fn restore(
    image: ImageSource,
    memory: &GuestMemory,
    plan: TransferPlan,
    engine_name: String,
    how: TransferOptions,
) -> Job {
    let memory = memory.open();
    let (plan, image) = (blocks(&plan), Source::from(image));
    Job::new(move |control| {
        let (memory, image) = (memory?, image.open()?);
        let chunk_bytes = integer(how.chunk_bytes, "chunkBytes")?;
        let plan = Plan::new(&memory, chunk_bytes, plan?, Content::Places)?;
        let job = RestoreJob {
            image: &image,
            memory: &memory,
            plan: &plan,
            options: options(&how),
            copying: copying(&how)?,
        };
        let restored = job.run(engine(&engine_name)?.as_ref(), control)?;
        Ok(JobOutcome {
            transferred_bytes: Some(number(restored.image_bytes)),
            copied_bytes: Some(number(restored.copied_bytes)),
            ..JobOutcome::default()
        })
    })
}

/// A page of guest memory that is not what the image says.
#[napi(object)]
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// Index of the block.
    pub block: u32,
    /// First byte of the page, from the start of the block.
    pub offset: f64,
}

/// A job that compares the memory that is mapped for reading only, and so cannot be restored into, with the image.
#[napi(catch_unwind)]
pub fn compare(image: ImageSource, memory: &GuestMemory, engine_name: String, how: TransferOptions) -> Job {
    let (memory, image) = (memory.open(), Source::from(image));
    Job::new(move |control| {
        let (memory, image) = (memory?, image.open()?);
        let chunk_bytes = integer(how.chunk_bytes, "chunkBytes")?;
        let job = CompareJob { image: &image, memory: &memory, chunk_bytes, options: options(&how) };
        let difference = job.run(engine(&engine_name)?.as_ref(), control)?;
        let difference = difference.map(|found| Difference {
            block: u32::try_from(found.block).unwrap_or(u32::MAX),
            offset: number(found.offset),
        });
        Ok(JobOutcome { difference, ..JobOutcome::default() })
    })
}

/// A job that reads what is planned and counts the bytes that a save would write; nothing is written.
#[napi(catch_unwind)]
pub fn measure(memory: &GuestMemory, plan: TransferPlan, how: TransferOptions) -> Job {
    let (memory, plan) = (memory.open(), blocks(&plan));
    Job::new(move |control| {
        let memory = memory?;
        let chunk_bytes = integer(how.chunk_bytes, "chunkBytes")?;
        let plan = Plan::new(&memory, chunk_bytes, plan?, Content::AllData)?;
        let written_bytes = transfer::measure(&memory, &plan, options(&how).threads, control)?;
        Ok(JobOutcome { transferred_bytes: Some(number(written_bytes)), ..JobOutcome::default() })
    })
}

/// A job that makes every page with a clear bit read zero, on so many threads.
#[napi(catch_unwind)]
pub fn clear(memory: &GuestMemory, bitmaps: Vec<Uint8Array>, threads: u32) -> Job {
    let (memory, bitmaps) = (memory.open(), copies(&bitmaps));
    let threads = usize::try_from(threads).unwrap_or(usize::MAX);
    Job::new(move |control| {
        let memory = memory?;
        let bitmaps = page_bitmaps(&bitmaps, memory.blocks())?;
        transfer::clear(&memory, &bitmaps, threads, control)?;
        Ok(JobOutcome::default())
    })
}

/// A job that asks whether the memory files that lie on a tmpfs or hugetlbfs can take the pages that the bitmaps mark.
#[napi(catch_unwind)]
pub fn require_room(memory: &GuestMemory, bitmaps: Vec<Uint8Array>) -> Job {
    let (memory, bitmaps) = (memory.open(), copies(&bitmaps));
    Job::new(move |_| {
        let memory = memory?;
        transfer::require_room(&memory, &page_bitmaps(&bitmaps, memory.blocks())?)?;
        Ok(JobOutcome::default())
    })
}

fn copies(arrays: &[Uint8Array]) -> Vec<Vec<u8>> {
    arrays.iter().map(|array| array.to_vec()).collect()
}

/// A bitmap that is too short would silently mean zero pages, so its length has to be right.
fn page_bitmaps(bitmaps: &[Vec<u8>], lengths: &[u64]) -> Result<Vec<PageBitmap>> {
    let bitmap = |(bytes, length): (&Vec<u8>, &u64)| {
        let pages = length / PAGE_BYTES;
        if bytes.len() as u64 != pages.div_ceil(64) * 8 {
            let message = format!("a page bitmap of {} bytes is not that of {pages} pages", bytes.len());
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok(PageBitmap::from_bytes(bytes, pages))
    };
    bitmaps.iter().zip(lengths).map(bitmap).collect()
}
