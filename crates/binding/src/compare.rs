//! The job that compares memory that cannot be restored into with the image.

use std::os::fd::AsFd;

use mapram_engine::transfer::CompareJob;
use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;

use crate::convert::{BlockPlace, TransferOptions, engine, integer, number, options, places};
use crate::image::{copies, page_bitmaps};
use crate::job::{Job, JobOutcome};
use crate::memory::GuestMemory;
use mapram_host::descriptor;

/// A page of guest memory that is not what the image says.
#[napi(object)]
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// Index of the block.
    pub block: u32,
    /// First byte of the page, from the start of the block.
    pub offset: f64,
}

/// A job that compares the memory that is mapped for reading only, and so cannot be restored into, with the image. `image_fd` stays
/// the caller's.
#[napi(catch_unwind)]
pub fn compare(
    image_fd: i32,
    memory: &GuestMemory,
    blocks: Vec<BlockPlace>,
    bitmaps: Vec<Uint8Array>,
    engine_name: String,
    how: TransferOptions,
) -> Job {
    let memory = memory.open();
    // JavaScript's arrays are read here, on its thread.
    let (places, bitmaps) = (places(&blocks), copies(&bitmaps));
    let image = descriptor::duplicate(image_fd);
    Job::new(move |control| {
        let (image, memory, places) = (image?, memory?, places?);
        let bitmaps = page_bitmaps(&bitmaps, &memory)?;
        let job = CompareJob {
            memory: &memory,
            places: &places,
            bitmaps: &bitmaps,
            chunk_bytes: integer(how.chunk_bytes, "chunkBytes")?,
            options: options(&how),
        };
        let difference = job.run(engine(&engine_name)?.as_ref(), image.as_fd(), control)?;
        let difference = difference.map(|found| Difference {
            block: u32::try_from(found.block).unwrap_or(u32::MAX),
            offset: number(found.offset),
        });
        Ok(JobOutcome { difference, ..JobOutcome::default() })
    })
}
