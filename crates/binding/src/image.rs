//! The handle of an image that is being written, and its jobs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mapram_engine::bitmap::PageBitmap;
use mapram_engine::image::{Alignment, ImageWriter, direct_alignment};
use mapram_engine::transfer::{Buffers, Content, Plan, SaveJob};
use mapram_engine::{Error, ErrorKind, PAGE_BYTES, Result};
use napi::Env;
use napi::bindgen_prelude::{Object, Uint8Array};
use napi_derive::napi;

use crate::convert::{
    PageArea, TransferOptions, TransferPlan, blocks, copying, engine, integer, number, options, page_areas,
};
use crate::failure::NativeError;
use crate::job::{Job, JobOutcome, Outcome, promise};
use crate::memory::GuestMemory;
use crate::slot::Slot;

/// Bytes of the image's headers, bitmaps or device state, and where they go.
#[napi(object)]
pub struct MetadataPart {
    /// File offset in bytes.
    pub offset: f64,
    /// The bytes.
    pub bytes: Uint8Array,
}

/// Which direct I/O an image's file system or device supports.
#[napi(object)]
pub struct DirectAlignment {
    /// Whether it is supported at all.
    pub supported: bool,
    /// Alignment of buffers in memory, in bytes.
    pub memory: u32,
    /// Alignment of file offsets and lengths, in bytes.
    pub offset: u32,
}

/// How an image was begun.
#[napi(object)]
#[derive(Default)]
pub struct CreateOutcome {
    /// Whether it was.
    pub ok: bool,
    /// Why not.
    pub error: Option<NativeError>,
    /// Bytes of the block device that it goes to; absent for a file.
    pub device_bytes: Option<f64>,
    /// What direct I/O needs there.
    pub direct: Option<DirectAlignment>,
}

impl Outcome for CreateOutcome {
    fn failed(error: NativeError) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

/// An image that is being written: a partial file until it is published, gone if it is discarded; or a block device.
#[napi]
pub struct ImageFile {
    /// Emptied, and so closed, when it was published or discarded rather than whenever JavaScript collects the handle.
    file: Slot<ImageWriter>,
    buffers: Arc<Buffers>,
    published: Arc<AtomicBool>,
}

#[napi]
impl ImageFile {
    /// No file yet: `create` makes one.
    #[napi(constructor, catch_unwind)]
    pub fn new() -> Self {
        Self { file: Slot::default(), buffers: Arc::default(), published: Arc::default() }
    }

    /// Creates the partial file beside `path` and locks it, or opens the block device at `path`. `direct` asks for
    /// direct I/O while pages are written.
    #[napi(ts_return_type = "Promise<CreateOutcome>", catch_unwind)]
    pub fn create<'env>(
        &self,
        env: &'env Env,
        path: String,
        force: bool,
        direct: bool,
        engine_name: String,
    ) -> napi::Result<Object<'env>> {
        let slot = self.file.clone();
        promise(env, move || {
            let file = ImageWriter::create(engine(&engine_name)?, Path::new(&path), force, direct)?;
            let outcome = CreateOutcome {
                ok: true,
                error: None,
                device_bytes: file.device_bytes().map(number),
                direct: Some(alignment(direct_alignment(file.fd()))),
            };
            slot.put(file);
            Ok(outcome)
        })
    }

    /// A job that makes the buffers for a save of about `data_bytes`, so that it need not once the guest stands still.
    #[napi(catch_unwind)]
    pub fn prepare(&self, data_bytes: f64, how: TransferOptions) -> Job {
        let buffers = Arc::clone(&self.buffers);
        Job::new(move |_| {
            let (data_bytes, chunk_bytes) =
                (integer(data_bytes, "dataBytes")?, integer(how.chunk_bytes, "chunkBytes")?);
            buffers.prepare(options(&how), data_bytes, chunk_bytes)?;
            Ok(JobOutcome::default())
        })
    }

    /// A job that writes the planned pages and resolves with the bitmaps of the whole memory.
    #[napi(catch_unwind)]
    pub fn save(
        &self,
        memory: &GuestMemory,
        areas: Vec<PageArea>,
        plan: TransferPlan,
        how: TransferOptions,
    ) -> Job {
        let (file, buffers) = (self.file.clone(), Arc::clone(&self.buffers));
        let memory = memory.open();
        // JavaScript's arrays are read here, on its thread.
        let (plan, areas) = (blocks(&plan), page_areas(&areas));
        Job::new(move |control| {
            let (memory, areas) = (memory?, areas?);
            let chunk_bytes = integer(how.chunk_bytes, "chunkBytes")?;
            let plan = Plan::new(&memory, chunk_bytes, plan?, Content::AllData)?;
            let bitmaps: Vec<PageBitmap> =
                memory.blocks().iter().map(|length| PageBitmap::new(length / PAGE_BYTES)).collect();
            let job = SaveJob {
                memory: &memory,
                plan: &plan,
                areas: &areas,
                bitmaps: &bitmaps,
                options: options(&how),
                copying: copying(&how)?,
                buffers: &buffers,
            };
            let saved = job.run(open_file(&file)?.as_ref(), control)?;
            let data_pages: u64 = bitmaps.iter().map(PageBitmap::count).sum();
            Ok(JobOutcome {
                bitmaps: Some(bitmaps.iter().map(|bitmap| Uint8Array::new(bitmap.to_bytes())).collect()),
                data_bytes: Some(number(data_pages * PAGE_BYTES)),
                transferred_bytes: Some(number(saved.image_bytes)),
                copied_bytes: Some(number(saved.copied_bytes)),
                ..JobOutcome::default()
            })
        })
    }

    /// A job that writes headers, bitmaps and device state, sets the final length and makes everything durable.
    #[napi(catch_unwind)]
    pub fn finish(&self, parts: Vec<MetadataPart>, length: f64) -> Job {
        let file = self.file.clone();
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
        let (slot, published) = (self.file.clone(), Arc::clone(&self.published));
        Job::new(move |control| {
            control.check()?;
            let file = open_file(&slot)?;
            let outcome = file.publish();
            published.store(outcome.is_ok() || file.is_published(), Ordering::Relaxed);
            outcome?;
            slot.take();
            Ok(JobOutcome::default())
        })
    }

    /// Whether the image has its name, or may have it, which may be so though publishing has failed; true when that has ended.
    #[napi(catch_unwind)]
    pub fn is_published(&self) -> bool {
        self.published.load(Ordering::Relaxed)
    }

    /// A job that removes the partial file unless it was published; to be run when no other job runs on the file.
    #[napi(catch_unwind)]
    pub fn discard(&self) -> Job {
        let (file, buffers) = (self.file.clone(), Arc::clone(&self.buffers));
        Job::new(move |_| {
            buffers.clear();
            file.take().map_or(Ok(()), |file| file.discard())?;
            Ok(JobOutcome::default())
        })
    }
}

fn alignment(found: Option<Alignment>) -> DirectAlignment {
    let Alignment { memory, offset } = found.unwrap_or(Alignment { memory: 0, offset: 0 });
    DirectAlignment { supported: found.is_some(), memory, offset }
}

fn open_file(slot: &Slot<ImageWriter>) -> Result<Arc<ImageWriter>> {
    slot.get()
        .ok_or_else(|| Error::new(ErrorKind::Usage, "the image file was already published or discarded"))
}
