//! What Node cannot do itself: the QMP socket with fds, memfds, direct opens, and what the host supports.

use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::Path;

use mapram_engine::Result;
use mapram_engine::image;
use mapram_engine::io;
use mapram_engine::memory::Pidfd;
use mapram_engine::transfer::JOINED_ZERO_PAGES;
use mapram_host::descriptor;
use mapram_host::files;
use mapram_host::guest_lock;
use mapram_host::unix_connection;
use napi::Env;
use napi::bindgen_prelude::{Either, Object, Uint8Array, Undefined};
use napi_derive::napi;

use crate::convert::{TransferOptions, number};
use crate::failure::{or_throw, or_undefined};
use crate::job::promise;

/// A connected Unix stream socket that can pass file descriptors.
#[napi]
pub struct UnixConnection {
    connection: unix_connection::UnixConnection,
}

#[napi]
impl UnixConnection {
    /// Connects to the socket at `path`, or to the abstract name behind a NUL.
    #[napi(catch_unwind)]
    pub fn connect(env: &Env, path: String) -> napi::Result<Self> {
        let connected = unix_connection::UnixConnection::connect(Path::new(&path));
        or_throw(env, connected).map(|connection| Self { connection })
    }

    /// The descriptor for `new net.Socket({ fd })`, which owns it from then on. Can be taken once.
    #[napi(catch_unwind)]
    pub fn take_fd(&mut self, env: &Env) -> napi::Result<i32> {
        or_throw(env, self.connection.take_fd()).map(IntoRawFd::into_raw_fd)
    }

    /// The process that called listen() on the other end: a hint only, as it may have handed the socket on. 0 if it is in none of
    /// our pid namespaces.
    #[napi(catch_unwind)]
    pub fn peer_pid(&self, env: &Env) -> napi::Result<i32> {
        or_throw(env, self.connection.peer_pid())
    }

    /// Sends a whole line along with descriptors, at once or not at all. Nothing else may be queued on the socket.
    #[napi(ts_args_type = "line: Uint8Array, fds: readonly number[]", catch_unwind)]
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

/// A process that stays known whatever becomes of its number; asking for its end takes no descriptor.
#[napi]
pub struct ProcessHandle {
    pid: i32,
    process: Option<Pidfd>,
    lock: Option<OwnedFd>,
}

#[napi]
impl ProcessHandle {
    /// The process that has the number `pid` now. Fails with `E_GUEST_GONE`, or `E_HOST_UNSUPPORTED` without a descriptor.
    #[napi(catch_unwind)]
    pub fn open(env: &Env, pid: i32) -> napi::Result<Self> {
        or_throw(env, Self::of(pid))
    }

    /// The same; absent for 0, as the kernel calls those of other pid namespaces, or if it cannot be held.
    #[napi(catch_unwind)]
    pub fn try_open(pid: i32) -> Either<ProcessHandle, Undefined> {
        or_undefined(Self::of(pid).ok())
    }

    /// Keeps every other job of mapram's on this host from the process, until this is closed. Fails with `E_TARGET_BUSY` if one
    /// is at work on it.
    #[napi(catch_unwind)]
    pub fn lock(&mut self, env: &Env) -> napi::Result<()> {
        self.lock = Some(or_throw(env, guest_lock::lock(self.pid))?);
        Ok(())
    }

    /// Whether it has ended, which one has that nobody has waited for yet; false once the handle is closed, for then nothing is
    /// known.
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

impl ProcessHandle {
    fn of(pid: i32) -> Result<Self> {
        Ok(Self { pid, process: Some(Pidfd::open(pid)?), lock: None })
    }
}

/// A new anonymous file in memory; the caller closes the descriptor.
#[napi(catch_unwind)]
pub fn create_memfd(env: &Env, name: String) -> napi::Result<i32> {
    or_throw(env, files::create_memfd(&name)).map(IntoRawFd::into_raw_fd)
}

/// Opens anew, for reading, the file or block device that `fd` leads to, optionally for direct I/O; the caller closes the
/// descriptor. `path` is its name for messages.
#[napi(ts_return_type = "Promise<number>", catch_unwind)]
pub fn reopen_for_reading<'env>(
    env: &'env Env,
    fd: i32,
    path: String,
    direct: bool,
) -> napi::Result<Object<'env>> {
    let file = descriptor::duplicate(fd);
    promise(env, move || Ok(image::reopen(file?.as_fd(), Path::new(&path), direct)?.into_raw_fd()))
}

/// Bytes in the file or block device that `fd` leads to.
#[napi(ts_return_type = "Promise<number>", catch_unwind)]
pub fn length_in_bytes<'env>(env: &'env Env, fd: i32) -> napi::Result<Object<'env>> {
    let file = descriptor::duplicate(fd);
    promise(env, move || files::length_in_bytes(file?.as_fd()).map(number))
}

/// Bytes that an ordinary user could still write to the file system of `directory`; without end where it does not say. With
/// `settle` the file system shall first finish what it put off, as XFS does when it frees removed files.
#[napi(ts_return_type = "Promise<number>", catch_unwind)]
pub fn free_bytes<'env>(
    env: &'env Env,
    directory: String,
    settle: Option<bool>,
) -> napi::Result<Object<'env>> {
    promise(env, move || {
        let directory = Path::new(&directory);
        if settle == Some(true) {
            files::settle(directory)?;
        }
        Ok(files::free_bytes(directory)?.map_or(f64::INFINITY, number))
    })
}

/// Fails unless the host's pages are of 4 KiB: mapram does not work with others.
#[napi(catch_unwind)]
pub fn check_page_size(env: &Env) -> napi::Result<()> {
    or_throw(env, mapram_engine::check_page_size())
}

/// Longest run of zero pages between data that a save writes along with its neighbours.
#[napi(catch_unwind)]
pub fn joined_zero_pages() -> f64 {
    number(JOINED_ZERO_PAGES)
}

/// The engine of that name, or the one that `auto` stands for on this host. Fails with the reason if it does not work.
#[napi(ts_return_type = "Promise<string>", catch_unwind)]
pub fn choose_engine<'env>(env: &'env Env, name: String, how: TransferOptions) -> napi::Result<Object<'env>> {
    let options = how.options();
    let (requests, queues) = (options.requests(), options.threads);
    promise(env, move || {
        let engine =
            if name == "auto" { io::auto(requests, queues) } else { io::probe(&name, requests, queues) };
        Ok(engine?.name())
    })
}
