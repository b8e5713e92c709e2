//! The handle of an image that is being written, and its jobs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mapram_engine::bitmap::PageBitmap;
use mapram_engine::image::{Alignment, ImageWriter, direct_alignment};
use mapram_engine::io;
use mapram_engine::transfer::{Buffers, Content, Control, Plan, SaveJob};
use mapram_engine::{Error, PAGE_BYTES, Result};
use napi::Env;
use napi::bindgen_prelude::{Either, Object, Uint8Array, Undefined};
use napi_derive::napi;

use crate::convert::{PageArea, TransferOptions, TransferPlan, blocks, integer, number, page_areas};
use crate::failure::or_undefined;
use crate::job::{Job, JobResult, promise};
use crate::memory::GuestMemory;

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
#[derive(Clone, Copy)]
pub struct DirectAlignment {
    /// Whether it is supported at all.
    pub supported: bool,
    /// Alignment of buffers in memory, in bytes.
    pub memory: u32,
    /// Alignment of file offsets and lengths, in bytes.
    pub offset: u32,
}

/// An image that is being written: a partial file until it is published, gone if it is discarded; or a block device.
#[napi]
pub struct ImageFile {
    image: Arc<Image>,
    alignment: DirectAlignment,
    device_bytes: Option<u64>,
}

/// What the jobs work on.
struct Image {
    /// Emptied, and so closed, when it was published or discarded rather than whenever JavaScript collects the handle.
    writer: Mutex<Option<Arc<ImageWriter>>>,
    buffers: Buffers,
    is_published: AtomicBool,
}

impl Image {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<ImageWriter>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> Result<Arc<ImageWriter>> {
        self.slot().clone().ok_or_else(|| Error::usage("the image file was already published or discarded"))
    }
}

#[napi]
impl ImageFile {
    /// Creates the partial file beside `path` and locks it, or opens the block device at `path`. `direct` asks for
    /// direct I/O while pages are written.
    #[napi(ts_return_type = "Promise<ImageFile>", catch_unwind)]
    pub fn create<'env>(
        env: &'env Env,
        path: String,
        force: bool,
        direct: bool,
        engine_name: String,
    ) -> napi::Result<Object<'env>> {
        promise(env, move || {
            let writer = ImageWriter::create(io::by_name(&engine_name)?, Path::new(&path), force, direct)?;
            Ok(Self {
                alignment: alignment(direct_alignment(writer.fd())),
                device_bytes: writer.device_bytes(),
                image: Arc::new(Image {
                    writer: Mutex::new(Some(Arc::new(writer))),
                    buffers: Buffers::default(),
                    is_published: AtomicBool::new(false),
                }),
            })
        })
    }

    /// What direct I/O needs there.
    #[napi(getter, catch_unwind)]
    pub fn alignment(&self) -> DirectAlignment {
        self.alignment
    }

    /// Bytes of the block device that it goes to; absent for a file.
    #[napi(getter, catch_unwind)]
    pub fn device_bytes(&self) -> Either<f64, Undefined> {
        or_undefined(self.device_bytes.map(number))
    }

    /// A job that makes the buffers for a save of about `data_bytes`, so that it need not once the guest stands still.
    #[napi(catch_unwind)]
    pub fn prepare(&self, data_bytes: f64, how: TransferOptions) -> Job {
        self.job(move |image, _| {
            image.buffers.prepare(how.options(), integer(data_bytes, "dataBytes")?, how.chunk_bytes()?)
        })
        .without_storage()
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
        let image = Arc::clone(&self.image);
        Job::new(|| {
            let (memory, blocks, areas) = (memory.open()?, blocks(&plan)?, page_areas(&areas)?);
            Ok(move |control: &Control| {
                let plan = Plan::new(&memory, how.chunk_bytes()?, blocks, Content::AllData)?;
                let bitmaps: Vec<PageBitmap> =
                    memory.blocks().iter().map(|length| PageBitmap::new(length / PAGE_BYTES)).collect();
                let job = SaveJob {
                    memory: &memory,
                    plan: &plan,
                    areas: &areas,
                    bitmaps: &bitmaps,
                    options: how.options(),
                    copying: how.copying()?,
                    buffers: &image.buffers,
                };
                let saved = job.run(image.writer()?.as_ref(), control)?;
                Ok(JobResult {
                    bitmaps: bitmaps.iter().map(|bitmap| Uint8Array::new(bitmap.to_bytes())).collect(),
                    copied_bytes: number(saved.copied_bytes),
                    ..JobResult::default()
                })
            })
        })
    }

    /// A job that writes headers, bitmaps and device state, sets the final length and makes everything durable.
    #[napi(catch_unwind)]
    pub fn finish(&self, parts: Vec<MetadataPart>, length: f64) -> Job {
        // The bytes are copied here, on JavaScript's thread, where nobody can change them meanwhile.
        let parts: Result<Vec<(u64, Vec<u8>)>> =
            parts.iter().map(|part| Ok((integer(part.offset, "offset")?, part.bytes.to_vec()))).collect();
        self.job(move |image, control| {
            control.check()?;
            let (writer, parts) = (image.writer()?, parts?);
            let parts: Vec<_> = parts.iter().map(|(offset, bytes)| (*offset, bytes.as_slice())).collect();
            writer.set_length(integer(length, "length")?)?;
            writer.write_metadata(&parts)?;
            writer.sync()
        })
    }

    /// A job that gives the finished file its name.
    #[napi(catch_unwind)]
    pub fn publish(&self) -> Job {
        self.job(|image, control| {
            control.check()?;
            let writer = image.writer()?;
            let outcome = writer.publish();
            image.is_published.store(outcome.is_ok() || writer.is_published(), Ordering::Relaxed);
            outcome?;
            image.slot().take();
            Ok(())
        })
    }

    /// Whether the image has its name, or may have it, which may be so though publishing has failed; true when that has ended.
    #[napi(catch_unwind)]
    pub fn is_published(&self) -> bool {
        self.image.is_published.load(Ordering::Relaxed)
    }

    /// A job that removes the partial file unless it was published; to be run when no other job runs on the file.
    #[napi(catch_unwind)]
    pub fn discard(&self) -> Job {
        self.job(|image, _| {
            image.buffers.clear();
            let writer = image.slot().take();
            writer.map_or(Ok(()), |writer| writer.discard())
        })
    }
}

impl ImageFile {
    /// A job on the image that counts nothing.
    fn job(&self, work: impl FnOnce(&Image, &Control) -> Result<()> + Send + 'static) -> Job {
        let image = Arc::clone(&self.image);
        Job::new(|| Ok(move |control: &Control| work(&image, control).map(|()| JobResult::default())))
    }
}

fn alignment(found: Option<Alignment>) -> DirectAlignment {
    let Alignment { memory, offset } = found.unwrap_or(Alignment { memory: 0, offset: 0 });
    DirectAlignment { supported: found.is_some(), memory, offset }
}
