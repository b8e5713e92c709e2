//! Work on a thread of its own, with progress and cancel, that settles one promise.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use mapram_engine::transfer::Control;
use mapram_engine::{Error, ErrorKind, Result};
use napi::bindgen_prelude::{Object, ToNapiValue, Uint8Array};
use napi::{Env, JsDeferred};
use napi_derive::napi;

use crate::convert::number;
use crate::failure::NativeError;
use crate::transfer::Difference;

/// How a job ended. Which counts are given depends on the job.
#[napi(object)]
#[derive(Default)]
pub struct JobOutcome {
    /// Whether it did what it was asked.
    pub ok: bool,
    /// Why not.
    pub error: Option<NativeError>,
    /// For a save: each block's page bitmap as the image stores it.
    pub bitmaps: Option<Vec<Uint8Array>>,
    /// For a save: bytes of pages that are not zero.
    pub data_bytes: Option<f64>,
    /// Bytes of the image's page areas that were written or read; for a measurement, that a save would write.
    pub transferred_bytes: Option<f64>,
    /// For a save or a restore: bytes of pages that went through a buffer of ours.
    pub copied_bytes: Option<f64>,
    /// For a comparison: a page that differs, if there is one.
    pub difference: Option<Difference>,
}

/// How far a job is.
#[napi(object)]
pub struct JobProgress {
    /// Bytes of planned data handled so far.
    pub bytes_done: f64,
    /// Bytes planned; 0 until the transfer has started.
    pub bytes_total: f64,
    /// I/O requests that have ended so far; stands still where the storage does not answer.
    pub completions: f64,
    /// Whether the job was cancelled or has failed, and only waits for what is in flight.
    pub stopping: bool,
    /// Whether a thread looks at guest memory. Once this is false of a job that is stopping, none will again.
    pub reading: bool,
    /// Milliseconds since the first byte was written to guest memory; absent before that.
    pub writing_ms: Option<f64>,
}

type Work = Box<dyn FnOnce(&Control) -> Result<JobOutcome> + Send>;

/// A job that starts when `run` is called.
#[napi]
pub struct Job {
    control: Arc<Control>,
    work: Option<Work>,
}

impl Job {
    pub(crate) fn new(work: impl FnOnce(&Control) -> Result<JobOutcome> + Send + 'static) -> Self {
        Self { control: Arc::default(), work: Some(Box::new(work)) }
    }
}

#[napi]
impl Job {
    /// Runs the job on a thread of its own; a second call resolves with a failure.
    #[napi(ts_return_type = "Promise<JobOutcome>", catch_unwind)]
    pub fn run<'env>(&mut self, env: &'env Env) -> napi::Result<Object<'env>> {
        let work = self.work.take();
        let control = Arc::clone(&self.control);
        promise(env, move || match work {
            Some(work) => work(&control).map(|outcome| JobOutcome { ok: true, ..outcome }),
            None => Err(Error::new(ErrorKind::Usage, "the job was started twice")),
        })
    }

    /// How far the job is; cheap enough to poll.
    #[napi(catch_unwind)]
    pub fn progress(&self) -> JobProgress {
        let progress = self.control.progress();
        JobProgress {
            bytes_done: number(progress.bytes_done),
            bytes_total: number(progress.bytes_total),
            completions: number(progress.completions),
            stopping: progress.stopping,
            reading: progress.reading,
            writing_ms: progress.writing_for.map(|time| time.as_secs_f64() * 1000.0),
        }
    }

    /// Asks the job to stop: requests in flight are waited for, then it resolves with `E_CANCELLED`.
    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.control.cancel();
    }
}

/// An outcome that can say why there is none.
pub(crate) trait Outcome: ToNapiValue + 'static {
    fn failed(error: NativeError) -> Self;
}

impl Outcome for JobOutcome {
    fn failed(error: NativeError) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

/// Runs `work` on a new thread and settles the returned promise with its outcome, whatever happens: a deferred that
/// is dropped unsettled would keep Node from ever exiting.
pub(crate) fn promise<'env, T: Outcome + Send>(
    env: &'env Env,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> napi::Result<Object<'env>> {
    let (deferred, promise) = env.create_deferred::<T, Resolver<T>>()?;
    // The deferred stays reachable from here, for the thread may not start.
    let deferred = Arc::new(Mutex::new(Some(deferred)));
    let settle = move |deferred: &Mutex<Option<JsDeferred<T, Resolver<T>>>>, outcome: Result<T>| {
        if let Some(deferred) = deferred.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let outcome = outcome.unwrap_or_else(|error| T::failed(error.into()));
            deferred.resolve(Box::new(move |_| Ok(outcome)));
        }
    };
    let of_thread = Arc::clone(&deferred);
    let body = move || {
        let outcome =
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::internal("the job panicked")));
        settle(&of_thread, outcome);
    };
    if let Err(cause) = thread::Builder::new().name("mapram-job".to_owned()).spawn(body) {
        let error = Error::os("starting a thread failed", cause).with_kind(ErrorKind::HostUnsupported);
        settle(&deferred, Err(error));
    }
    Ok(promise)
}

type Resolver<T> = Box<dyn FnOnce(Env) -> napi::Result<T> + Send>;
