//! What Node cannot do itself: the QMP socket with fds, memfds, direct opens, and what the host supports.

use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::Path;

use mapram_engine::Result;
use mapram_engine::image;
use mapram_engine::io;
use mapram_engine::memory::Pidfd;
use mapram_engine::transfer::{JOINED_ZERO_PAGES, Options};
use mapram_host::descriptor;
use mapram_host::files;
use mapram_host::guest_lock;
use mapram_host::unix_connection;
use napi::Env;
use napi::bindgen_prelude::{Object, Uint8Array};
use napi_derive::napi;

use crate::convert::number;
use crate::failure::{NativeError, or_throw};
use crate::job::{Outcome, promise};

/// A connected Unix stream socket that can pass file descriptors.
#[napi]
pub struct UnixConnection {
    connection: unix_connection::UnixConnection,
}

#[napi]
impl UnixConnection {
    /// Connects to the socket at `path`.
    #[napi(factory, catch_unwind)]
    pub fn connect(env: &Env, path: String) -> napi::Result<Self> {
        let connected = unix_connection::UnixConnection::connect(Path::new(&path));
        or_throw(env, connected).map(|connection| Self { connection })
    }

    /// The descriptor for `new net.Socket({ fd })`, which owns it from then on. Can be taken once.
    #[napi(catch_unwind)]
    pub fn take_fd(&mut self, env: &Env) -> napi::Result<i32> {
        or_throw(env, self.connection.take_fd()).map(IntoRawFd::into_raw_fd)
    }

    /// The process that called listen() on the other end: a hint only, as it may have handed the socket on.
    #[napi(catch_unwind)]
    pub fn peer_pid(&self, env: &Env) -> napi::Result<i32> {
        or_throw(env, self.connection.peer_pid())
    }

    /// Sends a whole line along with descriptors, at once or not at all. Nothing else may be queued on the socket.
    #[napi(catch_unwind)]
    pub fn send_with_fds(&self, env: &Env, line: Uint8Array, fds: Vec<i32>) -> napi::Result<()> {
        let sent = fds.into_iter().map(descriptor::duplicate).collect::<Result<Vec<_>>>().and_then(|fds| {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            self.connection.send_with_fds(&line, &fds)
        });
        or_throw(env, sent)
    }

    /// Closes the duplicate that sends descriptors; the taken one is not touched.
    #[napi(catch_unwind)]
    pub fn close(&mut self) {
        self.connection.close();
    }
}

/// A process that stays known whatever becomes of its number.
#[napi]
pub struct ProcessHandle {
    pid: i32,
    process: Option<Pidfd>,
    lock: Option<OwnedFd>,
}

#[napi]
impl ProcessHandle {
    /// The process that has the number `pid` now.
    #[napi(factory, catch_unwind)]
    pub fn open(env: &Env, pid: i32) -> napi::Result<Self> {
        or_throw(env, Pidfd::open(pid)).map(|process| Self { pid, process: Some(process), lock: None })
    }

    /// Keeps other jobs of mapram's from the process until this is closed.
    #[napi(catch_unwind)]
    pub fn lock(&mut self, env: &Env) -> napi::Result<()> {
        self.lock = Some(or_throw(env, guest_lock::lock(self.pid))?);
        Ok(())
    }

    /// Whether it has ended; false once the handle is closed, for then nothing is known.
    #[napi(catch_unwind)]
    pub fn has_ended(&self) -> bool {
        self.process.as_ref().is_some_and(Pidfd::has_ended)
    }

    /// Closes the descriptor.
    #[napi(catch_unwind)]
    pub fn close(&mut self) {
        self.process = None;
        self.lock = None;
    }
}

/// A new anonymous file in memory; the caller closes the descriptor.
#[napi(catch_unwind)]
pub fn create_memfd(env: &Env, name: String) -> napi::Result<i32> {
    or_throw(env, files::create_memfd(&name)).map(IntoRawFd::into_raw_fd)
}

/// What a question to the host or its file systems was answered. Which field is given depends on the question.
#[napi(object)]
#[derive(Default)]
pub struct HostOutcome {
    /// Whether there is an answer.
    pub ok: bool,
    /// Why not.
    pub error: Option<NativeError>,
    /// A descriptor, which the caller closes.
    pub fd: Option<i32>,
    /// A count of bytes.
    pub bytes: Option<f64>,
    /// The name of an I/O engine.
    pub engine: Option<String>,
}

impl Outcome for HostOutcome {
    fn failed(error: NativeError) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

/// Asks on a thread of its own: a file system that hangs must not hang Node's thread.
pub(crate) fn ask<'env>(
    env: &'env Env,
    question: impl FnOnce() -> Result<HostOutcome> + Send + 'static,
) -> napi::Result<Object<'env>> {
    promise(env, move || question().map(|answer| HostOutcome { ok: true, ..answer }))
}

/// Opens anew, for reading, the file or block device that `fd` leads to, optionally for direct I/O. `path` is its name
/// for messages.
#[napi(ts_return_type = "Promise<HostOutcome>", catch_unwind)]
pub fn reopen_for_reading<'env>(
    env: &'env Env,
    fd: i32,
    path: String,
    direct: bool,
) -> napi::Result<Object<'env>> {
    let file = descriptor::duplicate(fd);
    ask(env, move || {
        let opened = image::reopen(file?.as_fd(), Path::new(&path), direct)?;
        Ok(HostOutcome { fd: Some(opened.into_raw_fd()), ..HostOutcome::default() })
    })
}

/// Bytes in the file or block device that `fd` leads to.
#[napi(ts_return_type = "Promise<HostOutcome>", catch_unwind)]
pub fn length_in_bytes<'env>(env: &'env Env, fd: i32) -> napi::Result<Object<'env>> {
    let file = descriptor::duplicate(fd);
    ask(env, move || {
        let bytes = Some(number(files::length_in_bytes(file?.as_fd())?));
        Ok(HostOutcome { bytes, ..HostOutcome::default() })
    })
}

/// Bytes that an ordinary user could still write to the file system of `directory`, absent if it does not say. With `settle` the file system is
/// synced first, for some give the space of removed files back late.
#[napi(ts_return_type = "Promise<HostOutcome>", catch_unwind)]
pub fn free_bytes<'env>(env: &'env Env, directory: String, settle: bool) -> napi::Result<Object<'env>> {
    ask(env, move || {
        let directory = Path::new(&directory);
        if settle {
            files::settle(directory)?;
        }
        Ok(HostOutcome { bytes: files::free_bytes(directory)?.map(number), ..HostOutcome::default() })
    })
}

/// Why mapram does not work on this host at all, or null if nothing is known to be in the way.
#[napi(catch_unwind)]
pub fn host_problem() -> Option<NativeError> {
    mapram_engine::check_page_size().err().map(NativeError::from)
}

/// Longest run of zero pages between data that a save writes along with its neighbours.
#[napi(catch_unwind)]
pub fn joined_zero_pages() -> f64 {
    number(JOINED_ZERO_PAGES)
}

/// The I/O engines that can be chosen by name.
#[napi(catch_unwind)]
pub fn engine_names() -> Vec<String> {
    io::NAMES.iter().map(ToString::to_string).collect()
}

/// Fails with the reason if the engine does not work on this host with so many chunks in flight on each of so many
/// threads.
#[napi(ts_return_type = "Promise<HostOutcome>", catch_unwind)]
pub fn probe_engine<'env>(
    env: &'env Env,
    name: String,
    queue_depth: u32,
    threads: u32,
) -> napi::Result<Object<'env>> {
    let (requests, queues) = queues(queue_depth, threads);
    ask(env, move || io::probe(&name, requests, queues).map(|_| HostOutcome::default()))
}

/// The engine that `auto` stands for on this host, for so many chunks in flight on each of so many threads.
#[napi(ts_return_type = "Promise<HostOutcome>", catch_unwind)]
pub fn auto_engine<'env>(env: &'env Env, queue_depth: u32, threads: u32) -> napi::Result<Object<'env>> {
    let (requests, queues) = queues(queue_depth, threads);
    ask(env, move || {
        let engine = io::auto(requests, queues)?.name().to_owned();
        Ok(HostOutcome { engine: Some(engine), ..HostOutcome::default() })
    })
}

fn queues(queue_depth: u32, threads: u32) -> (u32, usize) {
    let threads = usize::try_from(threads).unwrap_or(usize::MAX);
    (Options { queue_depth, threads }.requests(), threads)
}
