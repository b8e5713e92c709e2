//! The engine for hosts that forbid io_uring: a few threads for each queue, with pread(2) and pwrite(2).

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Completion, Direction, Files, Io, Queue, Request, check_depth, would_block};
use crate::pool::Pool;

/// Most threads of one queue. Each has one request at the disk; more of them only take turns on few cores.
const THREADS_MAX: u32 = 8;

/// Threads with pread(2) and pwrite(2).
#[derive(Debug, Clone, Copy, Default)]
pub struct Blocking;

impl Files for Blocking {}

impl Io for Blocking {
    fn name(&self) -> &'static str {
        "blocking"
    }

    fn queue<'pool>(&self, depth: u32, _pool: &'pool Pool) -> io::Result<Box<dyn Queue + 'pool>> {
        check_depth(depth)?;
        let (requests, waiting) = mpsc::channel();
        let (finished, completions) = mpsc::channel();
        let mut queue = ThreadQueue {
            requests: Some(requests),
            completions,
            threads: Vec::new(),
            depth: depth as usize,
            in_flight: 0,
        };
        let waiting = Arc::new(Mutex::new(waiting));
        for index in 0..depth.min(THREADS_MAX) {
            let (waiting, finished) = (Arc::clone(&waiting), finished.clone());
            let thread = thread::Builder::new().name(format!("mapram-io-{index}"));
            queue.threads.push(thread.spawn(move || work(&waiting, &finished))?);
        }
        Ok(Box::new(queue))
    }
}

/// A request on its way to another thread.
struct Handed(Request);

// SAFETY: a request is a few numbers and an address. The address is valid in every thread, and who pushed the request
// has promised that it stays so, and that nobody else touches those bytes, until the completion came back.
unsafe impl Send for Handed {}

/// A thread's life: one request after the other, until the queue is dropped and nothing is left.
fn work(waiting: &Mutex<Receiver<Handed>>, finished: &Sender<Completion>) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Handed(request)) = next else { return };
        // SAFETY: `push` passes its caller's promise on.
        let result = unsafe { transfer(&request) };
        // The queue collects nothing any more once it is being dropped.
        let _ = finished.send(Completion { token: request.token, result });
    }
}

/// Carries a request out, in one system call.
///
/// # Safety
/// As for [`Queue::push`], until this returns.
pub(super) unsafe fn transfer(request: &Request) -> io::Result<u32> {
    let offset = i64::try_from(request.offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let length = request.length as usize;
    // rustix takes slices only, and a slice of memory that others may read or write meanwhile would be a lie.
    let moved = match request.direction {
        // SAFETY: the caller vouches for `length` writable bytes at `buffer`.
        Direction::Read => unsafe { libc::pread64(request.fd, request.buffer.cast(), length, offset) },
        // SAFETY: the caller vouches for `length` readable bytes at `buffer`.
        Direction::Write => unsafe { libc::pwrite64(request.fd, request.buffer.cast(), length, offset) },
    };
    u32::try_from(moved).map_err(|_| io::Error::last_os_error())
}

struct ThreadQueue {
    requests: Option<Sender<Handed>>,
    completions: Receiver<Completion>,
    threads: Vec<JoinHandle<()>>,
    depth: usize,
    in_flight: usize,
}

impl Queue for ThreadQueue {
    unsafe fn push(&mut self, request: Request) -> io::Result<()> {
        if self.in_flight == self.depth {
            return Err(would_block());
        }
        let sent = self.requests.as_ref().is_some_and(|requests| requests.send(Handed(request)).is_ok());
        if !sent {
            return Err(threads_gone());
        }
        self.in_flight += 1;
        Ok(())
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        if self.in_flight == 0 {
            return Ok(());
        }
        let before = completions.len();
        completions.push(self.completions.recv().map_err(|_| threads_gone())?);
        completions.extend(self.completions.try_iter());
        self.in_flight -= completions.len() - before;
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        // The threads end when the channel is closed and empty; then nothing is in flight.
        self.requests = None;
        for thread in self.threads.drain(..) {
            // A panic there has been printed; there is nobody to tell here.
            let _ = thread.join();
        }
    }
}

fn threads_gone() -> io::Error {
    io::Error::other("the I/O threads of this queue have ended")
}
