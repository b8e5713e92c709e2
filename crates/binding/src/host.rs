//! What Node cannot do itself: the QMP socket with fds, memfds, direct opens, and what the host supports.

use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::path::Path;

use mapram_engine::Result;
use mapram_engine::image;
use mapram_engine::io;
use mapram_engine::transfer::Options;
use mapram_host::descriptor;
use mapram_host::files;
use mapram_host::process;
use mapram_host::unix_connection;
use napi::Env;
use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;

use crate::convert::number;
use crate::failure::{NativeError, or_throw};

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
    process: Option<process::ProcessHandle>,
}

#[napi]
impl ProcessHandle {
    /// The process that has the number `pid` now.
    #[napi(factory, catch_unwind)]
    pub fn open(env: &Env, pid: i32) -> napi::Result<Self> {
        or_throw(env, process::ProcessHandle::open(pid)).map(|process| Self { process: Some(process) })
    }

    /// Whether it has ended; false once the handle is closed, for then nothing is known.
    #[napi(catch_unwind)]
    pub fn has_ended(&self) -> bool {
        self.process.as_ref().is_some_and(process::ProcessHandle::has_ended)
    }

    /// Closes the descriptor.
    #[napi(catch_unwind)]
    pub fn close(&mut self) {
        self.process = None;
    }
}

/// Which direct I/O a file or directory supports.
#[napi(object)]
pub struct DirectAlignment {
    /// Whether it is supported at all.
    pub supported: bool,
    /// Alignment of buffers in memory, in bytes.
    pub memory: u32,
    /// Alignment of file offsets and lengths, in bytes.
    pub offset: u32,
}

/// A new anonymous file in memory; the caller closes the descriptor.
#[napi(catch_unwind)]
pub fn create_memfd(env: &Env, name: String) -> napi::Result<i32> {
    or_throw(env, files::create_memfd(&name)).map(IntoRawFd::into_raw_fd)
}

/// Opens an existing file for reading, optionally for direct I/O; the caller closes the descriptor.
#[napi(catch_unwind)]
pub fn open_for_reading(env: &Env, path: String, direct: bool) -> napi::Result<i32> {
    or_throw(env, files::open_for_reading(Path::new(&path), direct)).map(IntoRawFd::into_raw_fd)
}

/// Bytes that an ordinary user could still write to the file system of `directory`.
#[napi(catch_unwind)]
pub fn free_bytes(env: &Env, directory: String) -> napi::Result<f64> {
    or_throw(env, files::free_bytes(Path::new(&directory))).map(number)
}

/// What direct I/O needs on the file system of `path`: an existing file, or a directory in which a nameless probe
/// file is opened.
#[napi(catch_unwind)]
pub fn direct_alignment(env: &Env, path: String) -> napi::Result<DirectAlignment> {
    let probe = or_throw(env, files::open_probe(Path::new(&path)))?;
    Ok(match image::direct_alignment(probe.as_fd()) {
        Some(alignment) => {
            DirectAlignment { supported: true, memory: alignment.memory, offset: alignment.offset }
        }
        None => DirectAlignment { supported: false, memory: 0, offset: 0 },
    })
}

/// The I/O engines that can be chosen by name.
#[napi(catch_unwind)]
pub fn engine_names() -> Vec<String> {
    io::NAMES.iter().map(ToString::to_string).collect()
}

/// Why the engine does not work on this host with so many chunks in flight on each of so many threads, or null if it
/// does.
#[napi(catch_unwind)]
pub fn probe_engine(name: String, queue_depth: u32, threads: u32) -> Option<NativeError> {
    let (requests, queues) = queues(queue_depth, threads);
    io::probe(&name, requests, queues).err().map(NativeError::from)
}

/// The engine that `auto` stands for on this host, for so many chunks in flight on each of so many threads.
#[napi(catch_unwind)]
pub fn auto_engine(env: &Env, queue_depth: u32, threads: u32) -> napi::Result<String> {
    let (requests, queues) = queues(queue_depth, threads);
    or_throw(env, io::auto(requests, queues).map(|engine| engine.name().to_owned()))
}

fn queues(queue_depth: u32, threads: u32) -> (u32, usize) {
    let threads = usize::try_from(threads).unwrap_or(usize::MAX);
    (Options { queue_depth, threads }.requests(), threads)
}
