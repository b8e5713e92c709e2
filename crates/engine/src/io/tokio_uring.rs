//! The tokio-uring runtime as an engine, for comparison with the bindings that it is built on.
//!
//! What shapes this file (tokio-uring 0.5.0): the runtime never enters the kernel with IORING_ENTER_GETEVENTS, so
//! IORING_SETUP_DEFER_TASKRUN would hang; a registered buffer can be lent to one operation at a time only, which does
//! not fit requests for parts of a slot, so nothing is registered; its `File` closes what it is made of, so it is made
//! of a duplicate.

use std::collections::HashMap;
use std::fs::File as StdFile;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::{Rc, Weak};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_uring::Runtime;
use tokio_uring::buf::{IoBuf, IoBufMut};
use tokio_uring::fs::File;

use super::{Completion, Direction, Files, Io, Queue, Request, check_depth, retry_no_memory, would_block};
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
        let (finished, completions) = mpsc::unbounded_channel();
        let runtime = retry_no_memory(|| set_up(depth))?;
        Ok(Box::new(RuntimeQueue {
            pushed: Vec::new(),
            files: HashMap::new(),
            runtime,
            finished,
            completions,
            depth: depth as usize,
            in_flight: 0,
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
    /// The duplicates that requests in flight use, by the descriptor that they were made of. One serves all requests
    /// on a descriptor, for many would exhaust RLIMIT_NOFILE. It is closed with the last of them: from then on the
    /// caller may close the descriptor, and its number may come back as another file.
    files: HashMap<RawFd, Weak<File>>,
    runtime: Runtime,
    finished: UnboundedSender<Completion>,
    completions: UnboundedReceiver<Completion>,
    depth: usize,
    in_flight: usize,
}

impl Queue for RuntimeQueue {
    unsafe fn push(&mut self, request: Request) -> io::Result<()> {
        if self.in_flight == self.depth {
            return Err(would_block());
        }
        let file = self.file(request.fd)?;
        self.pushed.push((request, file));
        self.in_flight += 1;
        Ok(())
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        if self.in_flight == 0 {
            return Ok(());
        }
        let before = completions.len();
        let Self { pushed, runtime, finished, completions: receiver, .. } = self;
        let first = runtime.block_on(async {
            for (request, file) in pushed.drain(..) {
                let finished = finished.clone();
                tokio_uring::spawn(async move {
                    let result = transfer(request, &file).await;
                    // Before the completion, after which the caller may close its descriptor.
                    drop(file);
                    // The receiver lives as long as the runtime that runs this.
                    let _ = finished.send(Completion { token: request.token, result });
                });
            }
            receiver.recv().await
        });
        completions.extend(first);
        while let Ok(completion) = self.completions.try_recv() {
            completions.push(completion);
        }
        self.in_flight -= completions.len() - before;
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl RuntimeQueue {
    /// The file of `fd`, which is open as long as requests on it are in flight.
    fn file(&mut self, fd: RawFd) -> io::Result<Rc<File>> {
        if let Some(file) = self.files.get(&fd).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = Rc::new(duplicate(fd)?);
        self.files.insert(fd, Rc::downgrade(&file));
        Ok(file)
    }
}

async fn transfer(request: Request, file: &File) -> io::Result<u32> {
    let buffer = RawBuffer { address: request.buffer, length: request.length as usize, filled: 0 };
    let moved = match request.direction {
        Direction::Read => file.read_at(buffer, request.offset).await.0,
        Direction::Write => {
            let full = RawBuffer { filled: buffer.length, ..buffer };
            file.write_at(full, request.offset).submit().await.0
        }
    };
    moved.and_then(|bytes| u32::try_from(bytes).map_err(io::Error::other))
}

/// Another descriptor of the same open file, for tokio-uring's `File` to close.
fn duplicate(fd: RawFd) -> io::Result<File> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: not negative, and who pushed the request keeps it open until the completion.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(File::from_std(StdFile::from(borrowed.try_clone_to_owned()?)))
}

/// A request's memory, which others own: dropping this frees nothing, for the runtime drops it before the kernel has
/// let go of the memory when an operation is cancelled.
struct RawBuffer {
    address: *mut u8,
    length: usize,
    filled: usize,
}

// SAFETY: the address does not depend on where this value is, and who pushed the request keeps the `length` bytes
// there valid until the completion; of a request that writes all are initialised, hence `filled`.
unsafe impl IoBuf for RawBuffer {
    fn stable_ptr(&self) -> *const u8 {
        self.address
    }

    fn bytes_init(&self) -> usize {
        self.filled
    }

    fn bytes_total(&self) -> usize {
        self.length
    }
}

// SAFETY: as above; who pushes a request that reads promises that the bytes are writable and nobody else's meanwhile.
unsafe impl IoBufMut for RawBuffer {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.address
    }

    unsafe fn set_init(&mut self, bytes: usize) {
        self.filled = self.filled.max(bytes);
    }
}
