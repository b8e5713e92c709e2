//! Work on a thread of its own, with progress and cancel, that settles one promise.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use mapram_engine::transfer::Control;
use mapram_engine::{Error, ErrorKind, Result};
use napi::bindgen_prelude::{Object, ToNapiValue, Uint8Array};
use napi::{Env, JsDeferred};
use napi_derive::napi;

use crate::convert::number;
use crate::failure::or_throw;
use crate::transfer::Difference;

/// What a finished job counted; nothing where it does not count that.
#[napi(object)]
#[derive(Default)]
pub struct JobResult {
    /// For a save: each block's page bitmap as the image stores it.
    pub bitmaps: Vec<Uint8Array>,
    /// For a measurement: bytes that a save would write.
    pub written_bytes: f64,
    /// For a save or a restore: bytes of pages that went through a buffer of ours.
    pub copied_bytes: f64,
    /// For a comparison: a page that differs, if there is one.
    pub difference: Option<Difference>,
}

/// How far a job is.
#[napi(object)]
pub struct JobProgress {
    /// Bytes of planned data handled so far.
    pub bytes_done: f64,
    /// I/O requests that have ended so far; stands still where the storage does not answer.
    pub completions: f64,
    /// Whether the job was cancelled or has failed, and only waits for what is in flight.
    pub stopping: bool,
    /// Whether a thread looks at guest memory. Once this is false of a job that is stopping, none will again.
    pub reading: bool,
    /// Milliseconds since the first byte was written to guest memory; absent before that.
    pub writing_ms: Option<f64>,
}

type Work = Box<dyn FnOnce(&Control) -> Result<JobResult> + Send>;

/// A job that starts when `run` is called.
#[napi]
pub struct Job {
    /// Whether it mostly waits for storage, and not for memory.
    #[napi(readonly)]
    pub needs_storage: bool,
    control: Arc<Control>,
    work: Option<Work>,
}

impl Job {
    /// A job whose work `prepare` makes at once, on JavaScript's thread: what is JavaScript's is read there. Where that fails,
    /// so does the job.
    pub(crate) fn new<W>(prepare: impl FnOnce() -> Result<W>) -> Self
    where
        W: FnOnce(&Control) -> Result<JobResult> + Send + 'static,
    {
        let work = prepare();
        let work = Box::new(move |control: &Control| work?(control));
        Self { needs_storage: true, control: Arc::default(), work: Some(work) }
    }

    /// The same job, which waits for memory and not for storage.
    pub(crate) fn without_storage(self) -> Self {
        Self { needs_storage: false, ..self }
    }
}

#[napi]
impl Job {
    /// Runs the job on a thread of its own. Only once.
    #[napi(ts_return_type = "Promise<JobResult>", catch_unwind)]
    pub fn run<'env>(&mut self, env: &'env Env) -> napi::Result<Object<'env>> {
        let (work, control) = (self.work.take(), Arc::clone(&self.control));
        promise(env, move || {
            let work = work.ok_or_else(|| Error::usage("the job was started twice"))?;
            work(&control)
        })
    }

    /// How far the job is; cheap enough to poll.
    #[napi(catch_unwind)]
    pub fn progress(&self) -> JobProgress {
        let progress = self.control.progress();
        JobProgress {
            bytes_done: number(progress.bytes_done),
            completions: number(progress.completions),
            stopping: progress.stopping,
            reading: progress.reading,
            writing_ms: progress.writing_for.map(|time| time.as_secs_f64() * 1000.0),
        }
    }

    /// Asks the job to stop: requests in flight are waited for, then it fails with `E_CANCELLED`.
    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.control.cancel();
    }
}

/// Runs `work` on a new thread and settles the returned promise with its outcome, whatever happens: a deferred that
/// is dropped unsettled would keep Node from ever exiting. What may hang is to be asked so, and not on Node's thread.
pub(crate) fn promise<'env, T: ToNapiValue + Send + 'static>(
    env: &'env Env,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> napi::Result<Object<'env>> {
    let (deferred, promise) = env.create_deferred()?;
    // The resolver runs on JavaScript's thread, where the error can be made that the promise is rejected with.
    let settle = |deferred: JsDeferred<T, _>, outcome: Result<T>| {
        deferred.resolve(move |env: Env| or_throw(&env, outcome));
    };
    let of_thread = deferred.clone();
    let body = move || {
        let panicked = |_| Err(Error::internal("the job panicked"));
        settle(of_thread, catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked));
    };
    if let Err(cause) = thread::Builder::new().name("mapram-job".to_owned()).spawn(body) {
        let error = Error::os("starting a thread failed", cause).with_kind(ErrorKind::HostUnsupported);
        settle(deferred, Err(error));
    }
    Ok(promise)
}
