//! Jobs that read an image, or only memory.

use std::os::fd::AsFd;
use std::path::Path;

use mapram_engine::Result;
use mapram_engine::image::ImageReader;
use mapram_engine::io;
use mapram_engine::transfer::{self, CompareJob, Content, Control, Plan, RestoreJob};
use mapram_host::descriptor;
use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;

use crate::convert::{
    PageArea, TransferOptions, TransferPlan, blocks, index, number, page_areas, page_bitmaps, thread_count,
};
use crate::job::{Job, JobResult};
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

impl ImageSource {
    /// What opens it, on another thread than JavaScript's.
    fn opener(self) -> Result<impl FnOnce() -> Result<ImageReader> + Send> {
        let file = descriptor::duplicate(self.fd)?;
        let areas = page_areas(&self.areas)?;
        let bitmaps = page_bitmaps(&self.bitmaps, areas.areas().iter().map(|area| area.length))?;
        let (path, direct) = (self.path, self.direct);
        Ok(move || ImageReader::open(file.as_fd(), Path::new(&path), direct, areas, bitmaps))
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
    Job::new(|| {
        let (memory, blocks, open_image) = (memory.open()?, blocks(&plan)?, image.opener()?);
        Ok(move |control: &Control| {
            let image = open_image()?;
            let plan = Plan::new(&memory, how.chunk_bytes()?, blocks, Content::Places)?;
            let job = RestoreJob {
                image: &image,
                memory: &memory,
                plan: &plan,
                options: how.options(),
                copying: how.copying()?,
            };
            let copied_bytes = number(job.run(io::by_name(&engine_name)?.as_ref(), control)?);
            Ok(JobResult { copied_bytes, ..JobResult::default() })
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
    Job::new(|| {
        let (memory, open_image) = (memory.open()?, image.opener()?);
        Ok(move |control: &Control| {
            let (image, chunk_bytes) = (open_image()?, how.chunk_bytes()?);
            let job = CompareJob { image: &image, memory: &memory, chunk_bytes, options: how.options() };
            let found = job.run(io::by_name(&engine_name)?.as_ref(), control)?;
            let difference =
                found.map(|page| Difference { block: index(page.block), offset: number(page.offset) });
            Ok(JobResult { difference, ..JobResult::default() })
        })
    })
}

/// A job that reads what is planned and counts the bytes that a save would write; nothing is written.
#[napi(catch_unwind)]
pub fn measure(memory: &GuestMemory, plan: TransferPlan, how: TransferOptions) -> Job {
    Job::new(|| {
        let (memory, blocks) = (memory.open()?, blocks(&plan)?);
        Ok(move |control: &Control| {
            let plan = Plan::new(&memory, how.chunk_bytes()?, blocks, Content::AllData)?;
            let written_bytes = transfer::measure(&memory, &plan, how.options().threads, control)?;
            Ok(JobResult { written_bytes: number(written_bytes), ..JobResult::default() })
        })
    })
    .without_storage()
}

/// A job that makes every page with a clear bit read zero, on so many threads.
#[napi(catch_unwind)]
pub fn clear(memory: &GuestMemory, bitmaps: Vec<Uint8Array>, threads: u32) -> Job {
    Job::new(|| {
        let memory = memory.open()?;
        let bitmaps = page_bitmaps(&bitmaps, memory.blocks().iter().copied())?;
        Ok(move |control: &Control| {
            transfer::clear(&memory, &bitmaps, thread_count(threads), control)?;
            Ok(JobResult::default())
        })
    })
    .without_storage()
}

/// A job that asks whether the memory files that lie on a tmpfs or hugetlbfs can take the pages that the bitmaps mark.
#[napi(catch_unwind)]
pub fn require_room(memory: &GuestMemory, bitmaps: Vec<Uint8Array>) -> Job {
    Job::new(|| {
        let memory = memory.open()?;
        let bitmaps = page_bitmaps(&bitmaps, memory.blocks().iter().copied())?;
        Ok(move |_: &Control| {
            transfer::require_room(&memory, &bitmaps)?;
            Ok(JobResult::default())
        })
    })
    .without_storage()
}
