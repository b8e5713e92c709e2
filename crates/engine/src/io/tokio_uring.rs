//! The tokio-uring runtime as an engine, for comparison with the bindings that it is built on.
//!
//! What shapes this file (tokio-uring 0.5.0): the runtime never enters the kernel with IORING_ENTER_GETEVENTS, so
//! IORING_SETUP_DEFER_TASKRUN would hang; a registered buffer can be lent to one operation at a time only, which does
//! not fit requests for parts of a slot, so nothing is registered; its `File` closes what it is made of, so it is made
//! of a duplicate.

use std::collections::HashMap;
use std::io;
use std::iter;
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::{Rc, Weak};

use tokio::task::JoinSet;
use tokio_uring::Runtime;
use tokio_uring::buf::{IoBuf, IoBufMut};
use tokio_uring::fs::File;

use super::{Completion, Direction, Files, Io, Queue, Request, check_depth, retry_no_memory};
use crate::error::Panicked;
use crate::pool::Pool;

/// io_uring through the `tokio-uring` runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioUring;

impl Files for TokioUring {}

impl Io for TokioUring {
    fn name(&self) -> &'static str {
        "tokio-uring"
    }

    fn queue<'pool>(&self, depth: u32, _pool: &'pool Pool) -> io::Result<Box<dyn Queue + 'pool>> {
        check_depth(depth)?;
        let runtime = retry_no_memory(|| set_up(depth))?;
        Ok(Box::new(RuntimeQueue {
            pushed: Vec::new(),
            running: JoinSet::new(),
            files: HashMap::new(),
            runtime,
            depth: depth as usize,
        }))
    }
}

/// A runtime with cooperative task work (Linux 5.19), or plain on older kernels.
fn set_up(depth: u32) -> io::Result<Runtime> {
    let mut cooperative = tokio_uring::uring_builder();
    cooperative.setup_clamp().setup_coop_taskrun();
    let mut plain = tokio_uring::uring_builder();
    plain.setup_clamp();
    let runtime = |ring| Runtime::new(tokio_uring::builder().entries(depth).uring_builder(ring));
    match runtime(&cooperative) {
        Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => runtime(&plain),
        outcome => outcome,
    }
}

/// Dropping it drops the runtime, which cancels what it can and waits for the rest.
struct RuntimeQueue {
    /// Taken, but not yet given to the runtime.
    pushed: Vec<(Request, Rc<File>)>,
    running: JoinSet<Completion>,
    /// The duplicates that requests in flight use, by the descriptor that they were made of. One serves all requests
    /// on a descriptor, for many would exhaust RLIMIT_NOFILE. It is closed with the last of them: from then on the
    /// caller may close the descriptor, and its number may come back as another file.
    files: HashMap<RawFd, Weak<File>>,
    runtime: Runtime,
    depth: usize,
}

impl Queue for RuntimeQueue {
    unsafe fn push(&mut self, request: Request) -> io::Result<()> {
        if self.pushed.len() + self.running.len() == self.depth {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let file = self.file(request.fd)?;
        self.pushed.push((request, file));
        Ok(())
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        let Self { pushed, running, runtime, .. } = self;
        let first = runtime.block_on(async {
            for (request, file) in pushed.drain(..) {
                // The file goes before there is a completion, after which the caller may close its descriptor.
                running.spawn_local(carry_out(request, file));
            }
            running.join_next().await
        });
        for ended in first.into_iter().chain(iter::from_fn(|| running.try_join_next())) {
            completions.push(ended.map_err(|_| io::Error::other(Panicked))?);
        }
        Ok(())
    }
}

impl RuntimeQueue {
    /// The file of `fd`, which is open as long as requests on it are in flight.
    fn file(&mut self, fd: RawFd) -> io::Result<Rc<File>> {
        if let Some(file) = self.files.get(&fd).and_then(Weak::upgrade) {
            return Ok(file);
        }
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: not negative, and who pushed the request keeps it open until the completion.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let file = Rc::new(File::from_std(borrowed.try_clone_to_owned()?.into()));
        self.files.insert(fd, Rc::downgrade(&file));
        Ok(file)
    }
}

async fn carry_out(request: Request, file: Rc<File>) -> Completion {
    let Request { token, offset, .. } = request;
    let moved = match request.direction {
        Direction::Read => file.read_at(Memory(request), offset).await.0,
        Direction::Write => file.write_at(Memory(request), offset).submit().await.0,
    };
    let result = moved.and_then(|bytes| u32::try_from(bytes).map_err(io::Error::other));
    Completion { token, result }
}

/// A request's memory, which others own: dropping this frees nothing, for the runtime drops it before the kernel has
/// let go of the memory when an operation is cancelled.
struct Memory(Request);

// SAFETY: the address does not depend on where this value is, and who pushed the request keeps the `length` bytes
// there valid until the completion. All are initialised: they lie in mappings, which the kernel has filled.
unsafe impl IoBuf for Memory {
    fn stable_ptr(&self) -> *const u8 {
        self.0.buffer
    }

    fn bytes_init(&self) -> usize {
        self.0.length as usize
    }

    fn bytes_total(&self) -> usize {
        self.0.length as usize
    }
}

// SAFETY: as above; who pushes a request that reads promises that the bytes are writable and nobody else's meanwhile.
unsafe impl IoBufMut for Memory {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.buffer
    }

    // All of them are already.
    unsafe fn set_init(&mut self, _bytes: usize) {}
}
