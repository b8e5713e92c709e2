//! Image file handles and the jobs that fill and read an image.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use mapram_engine::bitmap::PageBitmap;
use mapram_engine::image_file;
use mapram_engine::transfer::{self, RestoreJob, SaveJob};
use mapram_engine::{Error, ErrorKind, PAGE_BYTES, Result};
use napi::Env;
use napi::bindgen_prelude::{Float64Array, Uint8Array};
use napi_derive::napi;

use crate::convert::{BlockPlace, TransferOptions, engine, integer, number, options, places, plan};
use crate::failure::or_throw;
use crate::job::{Job, JobOutcome};
use crate::memory::GuestMemory;

/// Bytes of the image's headers, bitmaps or device state, and where they go.
#[napi(object)]
pub struct MetadataPart {
    /// File offset in bytes.
    pub offset: f64,
    /// The bytes.
    pub bytes: Uint8Array,
}

/// An image that is being written: a partial file until it is published, gone if it is discarded.
#[napi]
pub struct ImageFile {
    file: Slot,
}

/// The file while it is open; emptied, and so closed, when it was published or discarded rather than whenever
/// JavaScript collects the handle.
type Slot = Arc<Mutex<Option<Arc<image_file::ImageFile>>>>;

#[napi]
impl ImageFile {
    /// Creates the partial file beside `path` and locks it. `direct` asks for direct I/O while pages are written.
    #[napi(factory, catch_unwind)]
    pub fn create(
        env: &Env,
        path: String,
        force: bool,
        direct: bool,
        engine_name: String,
    ) -> napi::Result<Self> {
        let created = engine(&engine_name)
            .and_then(|io| image_file::ImageFile::create(io, Path::new(&path), force, direct));
        or_throw(env, created).map(|file| Self { file: Arc::new(Mutex::new(Some(Arc::new(file)))) })
    }

    /// A job that writes the planned ranges' pages and resolves with the bitmaps. Each channel is groups of four
    /// numbers: block, offset within the block, length, source.
    #[napi(catch_unwind)]
    pub fn save(
        &self,
        memory: &GuestMemory,
        blocks: Vec<BlockPlace>,
        channels: Vec<Float64Array>,
        how: TransferOptions,
    ) -> Job {
        let file = Arc::clone(&self.file);
        let memory = Arc::clone(&memory.memory);
        Job::new(move |control| {
            let plan = plan(&channels, &how)?;
            let job = SaveJob { memory: &memory, places: &places(&blocks)?, plan, options: options(&how) };
            let saved = job.run(open_file(&file)?.as_ref(), control)?;
            let data_pages: u64 = saved.bitmaps.iter().map(PageBitmap::count).sum();
            Ok(JobOutcome {
                bitmaps: Some(
                    saved.bitmaps.iter().map(|bitmap| Uint8Array::new(bitmap.to_bytes())).collect(),
                ),
                data_bytes: Some(number(data_pages * PAGE_BYTES)),
                transferred_bytes: Some(number(saved.written_bytes)),
                ..JobOutcome::default()
            })
        })
    }

    /// A job that writes headers, bitmaps and device state, sets the final length and makes everything durable.
    #[napi(catch_unwind)]
    pub fn finish(&self, parts: Vec<MetadataPart>, length: f64) -> Job {
        let file = Arc::clone(&self.file);
        // The bytes are copied here, on JavaScript's thread, where nobody can change them meanwhile.
        let parts: Vec<(f64, Vec<u8>)> =
            parts.iter().map(|part| (part.offset, part.bytes.to_vec())).collect();
        Job::new(move |control| {
            control.check()?;
            let parts = parts
                .iter()
                .map(|(offset, bytes)| Ok((integer(*offset, "offset")?, bytes.as_slice())))
                .collect::<Result<Vec<_>>>()?;
            let file = open_file(&file)?;
            file.set_length(integer(length, "length")?)?;
            file.write_metadata(&parts)?;
            file.sync()?;
            Ok(JobOutcome::default())
        })
    }

    /// A job that gives the finished file its name.
    #[napi(catch_unwind)]
    pub fn publish(&self) -> Job {
        let file = Arc::clone(&self.file);
        Job::new(move |control| {
            control.check()?;
            open_file(&file)?.publish()?;
            close_file(&file);
            Ok(JobOutcome::default())
        })
    }

    /// Removes the partial file unless it was published. No job may be running on it.
    #[napi(catch_unwind)]
    pub fn discard(&self, env: &Env) -> napi::Result<()> {
        or_throw(env, close_file(&self.file).map_or(Ok(()), |file| file.discard()))
    }
}

fn open_file(slot: &Slot) -> Result<Arc<image_file::ImageFile>> {
    let file = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
    file.ok_or_else(|| Error::new(ErrorKind::Usage, "the image file was already published or discarded"))
}

fn close_file(slot: &Slot) -> Option<Arc<image_file::ImageFile>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A job that makes every page with a clear bit read zero and then puts the image's pages in place. `image_fd` stays
/// the caller's and must stay open until the job has ended.
#[napi(catch_unwind)]
pub fn restore(
    image_fd: i32,
    memory: &GuestMemory,
    blocks: Vec<BlockPlace>,
    bitmaps: Vec<Uint8Array>,
    channels: Vec<Float64Array>,
    engine_name: String,
    how: TransferOptions,
) -> Job {
    let memory = Arc::clone(&memory.memory);
    let bitmaps = page_bitmaps(&bitmaps, &memory);
    Job::new(move |control| {
        let plan = plan(&channels, &how)?;
        let io = engine(&engine_name)?;
        let places = places(&blocks)?;
        let job =
            RestoreJob { memory: &memory, places: &places, bitmaps: &bitmaps, plan, options: options(&how) };
        let restored = job.run(io.as_ref(), borrow(image_fd), control)?;
        Ok(JobOutcome {
            transferred_bytes: Some(number(restored.read_bytes)),
            cleared_bytes: Some(number(restored.cleared_bytes)),
            ..JobOutcome::default()
        })
    })
}

/// A job that reads the planned ranges and counts the bytes of pages that are not zero; nothing is written.
#[napi(catch_unwind)]
pub fn measure(memory: &GuestMemory, channels: Vec<Float64Array>, how: TransferOptions) -> Job {
    let memory = Arc::clone(&memory.memory);
    Job::new(move |control| {
        let threads = options(&how).threads;
        let data_bytes = transfer::measure(&memory, plan(&channels, &how)?, threads, control)?;
        Ok(JobOutcome { data_bytes: Some(number(data_bytes)), ..JobOutcome::default() })
    })
}

/// A job that makes every page with a clear bit read zero.
#[napi(catch_unwind)]
pub fn clear(memory: &GuestMemory, bitmaps: Vec<Uint8Array>) -> Job {
    let memory = Arc::clone(&memory.memory);
    let bitmaps = page_bitmaps(&bitmaps, &memory);
    Job::new(move |control| {
        let cleared_bytes = Some(number(transfer::clear(&memory, &bitmaps, control)?));
        Ok(JobOutcome { cleared_bytes, ..JobOutcome::default() })
    })
}

fn page_bitmaps(bitmaps: &[Uint8Array], memory: &mapram_engine::memory::Memory) -> Vec<PageBitmap> {
    let blocks = bitmaps.iter().zip(memory.blocks());
    blocks.map(|(bytes, length)| PageBitmap::from_bytes(bytes, length / PAGE_BYTES)).collect()
}

fn borrow<'fd>(fd: i32) -> BorrowedFd<'fd> {
    // SAFETY: the caller keeps the descriptor open until the job has ended, as `restore` demands.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
