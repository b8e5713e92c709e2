//! The engine for hosts that forbid io_uring: a few threads for each queue, with pread(2) and pwrite(2).

use std::io;
use std::panic;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Completion, Direction, Files, Io, Queue, Request, check_depth};
use crate::error::Panicked;
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
        Ok(Box::new(ThreadQueue::new(depth, transfer)?))
    }
}

/// What carries a request out: [`transfer`], outside of tests.
type CarryOut = unsafe fn(&Request) -> io::Result<u32>;

/// A request on its way to another thread.
struct Handed(Request);

// SAFETY: a request is a few numbers and an address. The address is valid in every thread, and who pushed the request
// has promised that it stays so, and that nobody else touches those bytes, until the completion came back.
unsafe impl Send for Handed {}

/// A thread's life: one request after the other, until the queue is dropped and nothing is left.
fn work(waiting: &Mutex<Receiver<Handed>>, finished: &Sender<Completion>, carry_out: CarryOut) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Handed(request)) = next else { return };
        // Without an answer, who waits for this request would wait for ever.
        // SAFETY: `push` passes its caller's promise on.
        let result = panic::catch_unwind(|| unsafe { carry_out(&request) })
            .unwrap_or_else(|_| Err(io::Error::other(Panicked)));
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
    requests: Sender<Handed>,
    /// The other end, where the threads take requests.
    waiting: Arc<Mutex<Receiver<Handed>>>,
    completions: Receiver<Completion>,
    threads: Vec<JoinHandle<()>>,
    depth: usize,
    in_flight: usize,
}

impl ThreadQueue {
    fn new(depth: u32, carry_out: CarryOut) -> io::Result<Self> {
        let (requests, waiting) = mpsc::channel();
        let (finished, completions) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let mut queue =
            Self { requests, waiting, completions, threads: Vec::new(), depth: depth as usize, in_flight: 0 };
        for index in 0..depth.min(THREADS_MAX) {
            let (waiting, finished) = (Arc::clone(&queue.waiting), finished.clone());
            let thread = thread::Builder::new().name(format!("mapram-io-{index}"));
            queue.threads.push(thread.spawn(move || work(&waiting, &finished, carry_out))?);
        }
        Ok(queue)
    }
}

impl Queue for ThreadQueue {
    unsafe fn push(&mut self, request: Request) -> io::Result<()> {
        if self.in_flight == self.depth {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.requests.send(Handed(request)).map_err(|_| threads_gone())?;
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
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        // The threads end when the channel is closed, by dropping its only sender, and empty; then nothing is in flight.
        self.requests = mpsc::channel().0;
        // What no thread has begun is forgotten. An idle thread waits with the lock, but closing has woken it.
        while self.waiting.lock().unwrap_or_else(PoisonError::into_inner).try_recv().is_ok() {}
        for thread in self.threads.drain(..) {
            // A panic there has been printed; there is nobody to tell here.
            let _ = thread.join();
        }
    }
}

fn threads_gone() -> io::Error {
    io::Error::other("the I/O threads of this queue have ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, Read, Write};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    /// Reads a byte from a pipe, which pread(2) cannot: so a test says when a request ends.
    ///
    /// # Safety
    /// As for [`Queue::push`].
    unsafe fn read_pipe(request: &Request) -> io::Result<u32> {
        // SAFETY: the caller vouches for the buffer, of at least one byte.
        let moved = unsafe { libc::read(request.fd, request.buffer.cast(), 1) };
        u32::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    unsafe fn fail(request: &Request) -> io::Result<u32> {
        assert!(request.token != 1, "on purpose");
        Ok(request.length)
    }

    fn request(token: u64, pipe: &PipeReader, buffer: *mut u8) -> Request {
        Request { token, direction: Direction::Read, fd: pipe.as_raw_fd(), offset: 0, buffer, length: 1 }
    }

    #[test]
    fn dropping_forgets_what_was_not_begun() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let pool = Pool::new(1, 4096).unwrap();
        let mut queue = ThreadQueue::new(100, read_pipe).unwrap();
        for token in 0..100 {
            let buffer = pool.slot(0).wrapping_add(usize::try_from(token).unwrap());
            // SAFETY: pool and pipe outlive the queue, and each request has a byte of its own.
            unsafe { queue.push(request(token, &reader, buffer)) }.unwrap();
        }
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            writer.write_all(&[1; 100]).unwrap();
        });
        drop(queue);
        late.join().unwrap();
        let mut left = Vec::new();
        reader.read_to_end(&mut left).unwrap();
        assert!(left.len() >= 100 - THREADS_MAX as usize, "{} requests were begun", 100 - left.len());
    }

    #[test]
    fn a_panic_is_the_failure_of_its_request_alone() {
        let (reader, _writer) = io::pipe().unwrap();
        let pool = Pool::new(1, 4096).unwrap();
        let mut queue = ThreadQueue::new(1, fail).unwrap();
        for token in 0..3 {
            // SAFETY: the requests touch neither the buffer nor the pipe.
            unsafe { queue.push(request(token, &reader, pool.slot(0))) }.unwrap();
            let mut completions = Vec::new();
            queue.wait(&mut completions).unwrap();
            assert_eq!((completions[0].token, completions[0].result.is_ok()), (token, token != 1));
        }
    }
}
