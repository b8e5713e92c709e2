//! The I/O engines: siblings behind one narrow trait, one file each.
//!
//! An engine does two things: batched reads and writes through a [`Queue`] that belongs to one thread, and the few
//! calls that an image file's life needs ([`Files`]). Both are behind the trait so that the simulated engine's
//! faults reach everything that touches the image.

mod blocking;
mod files;
mod io_uring;
#[cfg(any(test, feature = "simulation"))]
mod simulated;
mod tokio_uring;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod limits;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

pub use blocking::Blocking;
pub use files::Files;
pub use io_uring::IoUring;
#[cfg(any(test, feature = "simulation"))]
pub use simulated::{FaultCounts, Faults, Simulated};
pub use tokio_uring::TokioUring;

use crate::pool::Pool;
use crate::{Error, ErrorKind, Result};

/// The engines that users can choose by name, the preferred one first.
pub const NAMES: [&str; 3] = ["io-uring", "tokio-uring", "blocking"];

/// Most requests that one queue may have in flight.
pub const MAX_QUEUE_DEPTH: u32 = 256;

/// How often, and after which pause, a set-up that met ENOMEM is tried again. A closed ring's memory counts against
/// RLIMIT_MEMLOCK until the kernel has torn the ring down (about 30 ms later on Linux 6.18), so the rings of a probe
/// that has just succeeded could be what keeps the transfer's rings from being made.
const TEAR_DOWN_TRIES: u32 = 5;
const TEAR_DOWN_PAUSE: Duration = Duration::from_millis(50);

/// An I/O engine.
pub trait Io: Files + Send + Sync + std::fmt::Debug {
    /// The name users choose it by: `io-uring`, `tokio-uring`, `blocking`, `simulated`.
    fn name(&self) -> &'static str;

    /// A queue for the calling thread that takes `depth` requests at once (1 to [`MAX_QUEUE_DEPTH`]).
    ///
    /// `pool` holds the buffers that most requests will use; an engine may register it with the kernel and must go
    /// on unregistered where that is refused (RLIMIT_MEMLOCK). The pool must outlive the queue.
    ///
    /// # Errors
    /// The errno of the set-up call, for example ENOSYS or EPERM where io_uring is forbidden.
    fn queue<'pool>(&self, depth: u32, pool: &'pool Pool) -> io::Result<Box<dyn Queue + 'pool>>;
}

/// Which way bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the file, or another process, into the buffer.
    Read,
    /// From the buffer into the file, or another process.
    Write,
}

/// One read or write of a contiguous part of a file.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// The caller's name for it, given back in its [`Completion`].
    pub token: u64,
    /// Which way.
    pub direction: Direction,
    /// The file; it stays open until the completion.
    pub fd: RawFd,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// Where in memory.
    pub buffer: *mut u8,
    /// How many bytes.
    pub length: u32,
}

/// How one request ended: bytes moved (possibly fewer than asked; 0 from a read is end of file) or an error.
#[derive(Debug)]
pub struct Completion {
    /// The request's token.
    pub token: u64,
    /// Bytes moved, or the errno.
    pub result: io::Result<u32>,
}

/// Requests in flight from one thread.
///
/// Dropping a queue waits for everything in flight, so that no kernel write lands in memory that was freed; what was
/// pushed and not yet submitted may be forgotten instead. A queue stays on the thread that made it.
/// Short results and EINTR/EAGAIN are handed up as they are: [`crate::transfer`] handles them once for all engines.
pub trait Queue {
    /// Takes a request; it may be submitted later, but not later than the next [`wait`](Queue::wait).
    ///
    /// # Errors
    /// The request was not taken: `WouldBlock` if the queue is full, or the errno of submission.
    ///
    /// # Safety
    /// `buffer` must be valid for `length` bytes (for writing, if the request reads) until the completion was
    /// returned or the queue was dropped, and nobody else may write to it meanwhile; `fd` must stay open as long.
    unsafe fn push(&mut self, request: Request) -> io::Result<()>;

    /// Submits what was pushed and blocks until at least one request has completed; appends all that have.
    /// Returns at once if nothing is in flight.
    ///
    /// # Errors
    /// The queue itself failed; requests are still in flight and are waited for on drop.
    fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()>;
}

/// The engine called `name`, one of [`NAMES`]; whether it works on this host is for [`probe`] to say.
///
/// # Errors
/// `Usage` if there is no such engine.
pub fn by_name(name: &str) -> Result<Arc<dyn Io>> {
    let engines: [Arc<dyn Io>; 3] = [Arc::new(IoUring), Arc::new(TokioUring), Arc::new(Blocking)];
    let unknown = || format!("there is no I/O engine {name:?}; there are {}", NAMES.join(", "));
    engines.into_iter().find(|engine| engine.name() == name).ok_or_else(|| Error::usage(unknown()))
}

/// The best engine that works on this host: `io-uring`, or `blocking` where io_uring is forbidden. It is tried with as
/// many queues of `depth` requests as the transfer will have.
///
/// # Errors
/// `HostUnsupported` if not even that one works.
pub fn auto(depth: u32, queues: usize) -> Result<Arc<dyn Io>> {
    probe("io-uring", depth, queues).or_else(|_| probe("blocking", depth, queues))
}

/// The engine called `name`, if it works on this host with as many queues of `depth` requests at once as a
/// transfer will have (at least one): what RLIMIT_MEMLOCK forbids is better known before the guest is stopped.
///
/// # Errors
/// `Usage` if there is no such engine or no such depth; `HostUnsupported` with the likely reason if it does not work, or
/// where the host's pages are of another size than ours.
pub fn probe(name: &str, depth: u32, queues: usize) -> Result<Arc<dyn Io>> {
    let engine = by_name(name)?;
    // First of all: with pages of another size nothing of ours maps memory as it should.
    crate::check_page_size()?;
    let pool = Pool::new(1, 4096)?;
    try_out(engine.as_ref(), depth, queues, &pool).map_err(|cause| set_up_error(name, cause))?;
    Ok(engine)
}

/// The error for an engine whose set-up failed with `cause`: a limit of the host, unless the depth is impossible.
pub(crate) fn set_up_error(engine_name: &str, cause: io::Error) -> Error {
    // Only check_depth says this without an errno.
    if cause.kind() == io::ErrorKind::InvalidInput && cause.raw_os_error().is_none() {
        return Error::usage(cause.to_string());
    }
    let message = format!("the I/O engine {engine_name} does not work here: {}", likely_cause(&cause));
    Error::os(message, cause).with_kind(ErrorKind::HostUnsupported)
}

/// Makes the queues and reads from /dev/zero by one of them while the others are there: set-up, submission and
/// completion can each be forbidden on their own.
fn try_out(engine: &dyn Io, depth: u32, queues: usize, pool: &Pool) -> io::Result<()> {
    let file = fs::File::open("/dev/zero")?;
    let mut queue = engine.queue(depth, pool)?;
    let _others = (1..queues).map(|_| engine.queue(depth, pool)).collect::<io::Result<Vec<_>>>()?;
    let request = Request {
        token: 0,
        direction: Direction::Read,
        fd: file.as_raw_fd(),
        offset: 0,
        buffer: pool.slot(0),
        length: 8,
    };
    // SAFETY: the slot is larger than the request, nobody else knows of the pool, and pool and file outlive the queue.
    unsafe { queue.push(request) }?;
    let mut completions = Vec::new();
    queue.wait(&mut completions)?;
    completions.pop().map_or(Ok(()), |completion| completion.result.map(drop))
}

/// What an errno of setting up an engine most likely means, and what to do about it.
fn likely_cause(cause: &io::Error) -> String {
    match cause.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring, or a sandbox hides it".into(),
        Some(libc::EPERM | libc::EACCES) => match fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
            Ok(setting) if setting.trim() != "0" => {
                format!("the sysctl kernel.io_uring_disabled is {} and forbids it", setting.trim())
            }
            _ => "a seccomp filter forbids io_uring, as Docker's default profile does".into(),
        },
        Some(libc::ENOMEM) => {
            "RLIMIT_MEMLOCK (ulimit -l) is too low for its rings, or memory is short; fewer channels or a smaller queue \
             depth need less"
                .into()
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP) => "this kernel is older than Linux 5.6".into(),
        Some(libc::EMFILE | libc::ENFILE) => "too many files are open (ulimit -n)".into(),
        Some(libc::EAGAIN) => "no more threads can be started (ulimit -u, or pids.max of the control group)".into(),
        _ => cause.to_string(),
    }
}

/// Calls `set_up` again for a while as long as it fails with ENOMEM.
fn retry_no_memory<T>(mut set_up: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..TEAR_DOWN_TRIES {
        match set_up() {
            Err(cause) if cause.raw_os_error() == Some(libc::ENOMEM) => thread::sleep(TEAR_DOWN_PAUSE),
            outcome => return outcome,
        }
    }
    set_up()
}

/// Refuses a queue depth that no engine takes.
fn check_depth(depth: u32) -> io::Result<()> {
    if (1..=MAX_QUEUE_DEPTH).contains(&depth) {
        return Ok(());
    }
    let message = format!("a queue depth of {depth} is not within 1 to {MAX_QUEUE_DEPTH}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_names_an_engine_that_knows_its_name() {
        for name in NAMES {
            assert_eq!(by_name(name).unwrap().name(), name);
        }
        assert_eq!(by_name("auto").map(drop).unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(probe("libaio", 1, 1).unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(probe("blocking", 0, 1).unwrap_err().kind, ErrorKind::Usage);
    }

    #[test]
    fn a_named_engine_that_works_is_what_auto_may_choose() {
        let chosen = auto(8, 2).unwrap();
        assert!(["io-uring", "blocking"].contains(&chosen.name()));
        probe(chosen.name(), 8, 2).unwrap();
        probe("blocking", 8, 2).unwrap();
    }

    #[test]
    fn the_likely_cause_is_named() {
        let cause = |errno| likely_cause(&io::Error::from_raw_os_error(errno));
        assert!(cause(libc::ENOSYS).contains("kernel"));
        assert!(cause(libc::ENOMEM).contains("MEMLOCK"));
        assert!(cause(libc::EPERM).contains("io_uring"));
    }
}
