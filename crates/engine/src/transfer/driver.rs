//! Requests in flight from one thread, with short results and transient errors handled once for every engine.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use super::{Control, to_usize};
use crate::io::{Completion, Direction, Queue, Request};
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

/// How often a request may come back without progress (EAGAIN, EINTR, a short result of less than a page).
const MAX_STALLS: u32 = 64;
/// From this many stalls on, the thread sleeps a millisecond before the request is tried again.
const STALLS_BEFORE_SLEEP: u32 = 8;

/// Contiguous bytes of a chunk on their way to or from the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// The slot of the chunk that they belong to.
    pub slot: usize,
    /// First byte in our memory: of the slot's buffer, or elsewhere.
    pub buffer: *mut u8,
    /// File offset in bytes.
    pub file_offset: u64,
    /// Bytes.
    pub length: usize,
}

/// One thread's queue, and which slots have requests in flight.
pub(super) struct Driver<'pool> {
    control: &'pool Control,
    queue: Box<dyn Queue + 'pool>,
    fd: RawFd,
    direction: Direction,
    capacity: usize,
    flights: Vec<Option<Flight>>,
    unused: Vec<usize>,
    outstanding: Vec<usize>,
    finished: Vec<usize>,
    completions: Vec<Completion>,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    part: Part,
    stalls: u32,
}

impl<'pool> Driver<'pool> {
    /// A driver of `slots` slots for `fd`, whose parts all go in `direction`, at most `capacity` at once.
    pub fn new(
        queue: Box<dyn Queue + 'pool>,
        slots: usize,
        fd: RawFd,
        direction: Direction,
        capacity: usize,
        control: &'pool Control,
    ) -> Self {
        Self {
            control,
            queue,
            fd,
            direction,
            capacity,
            flights: vec![None; capacity],
            unused: (0..capacity).rev().collect(),
            outstanding: vec![0; slots],
            finished: Vec::new(),
            completions: Vec::with_capacity(capacity),
        }
    }

    /// Starts the transfer of `part`, waiting for others first while the queue is full.
    ///
    /// # Safety
    /// The part's bytes must be valid, and not be touched by the caller, until the slot was returned by
    /// [`Self::take_finished`] or the driver was dropped.
    pub unsafe fn start(&mut self, part: Part) -> Result<()> {
        // Counted before waiting, or the slot's earlier parts, finishing meanwhile, would finish the whole slot.
        self.outstanding[part.slot] += 1;
        while self.unused.is_empty() {
            self.wait()?;
        }
        if let Some(token) = self.unused.pop() {
            self.submit(token, Flight { part, stalls: 0 })?;
        }
        Ok(())
    }

    /// Requests that have not finished.
    pub fn in_flight(&self) -> usize {
        self.capacity - self.unused.len()
    }

    /// A slot all of whose parts have finished, if there is one.
    pub fn take_finished(&mut self) -> Option<usize> {
        self.finished.pop()
    }

    /// Waits until at least one request has moved on.
    ///
    /// # Errors
    /// The first request that failed for good. The others are still in flight; dropping the driver waits for them.
    pub fn wait(&mut self) -> Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.queue.wait(&mut completions).map_err(|cause| Error::os("waiting for I/O failed", cause))?;
        self.control.count_completions(completions.len());
        let outcome = completions.drain(..).try_for_each(|completion| self.complete(completion));
        self.completions = completions;
        outcome
    }

    fn submit(&mut self, token: usize, flight: Flight) -> Result<()> {
        let Part { buffer, file_offset, length, .. } = flight.part;
        self.flights[token] = Some(flight);
        let length = u32::try_from(length)
            .map_err(|_| Error::new(ErrorKind::Usage, format!("a request of {length} bytes is too long")))?;
        let request = Request {
            token: token as u64,
            direction: self.direction,
            fd: self.fd,
            offset: file_offset,
            buffer,
            length,
        };
        // SAFETY: the caller leaves the bytes alone until the slot has finished or the driver, and with it the queue, is
        // gone; the file is open for as long.
        let pushed = unsafe { self.queue.push(request) };
        pushed.map_err(|cause| self.failure(file_offset, cause))
    }

    fn complete(&mut self, completion: Completion) -> Result<()> {
        let token = usize::try_from(completion.token).unwrap_or(usize::MAX);
        let Some(mut flight) = self.flights.get_mut(token).and_then(Option::take) else {
            return Err(Error::new(
                ErrorKind::Io,
                "the I/O engine completed a request that it was not given",
            ));
        };
        let moved = match completion.result {
            Ok(moved) => moved as usize,
            Err(cause) if is_transient(&cause) => 0,
            Err(cause) => return Err(self.failure(flight.part.file_offset, cause)),
        };
        if moved >= flight.part.length {
            self.finish(token, flight.part.slot);
            return Ok(());
        }
        // Direct I/O can only go on at a page boundary; what lies behind the last one is moved again.
        let whole_pages = moved - moved % to_usize(PAGE_BYTES);
        flight.part.buffer = flight.part.buffer.wrapping_add(whole_pages);
        flight.part.file_offset += whole_pages as u64;
        flight.part.length -= whole_pages;
        flight.stalls = if whole_pages == 0 { flight.stalls + 1 } else { 0 };
        if self.direction == Direction::Read && whole_pages == 0 {
            self.check_not_truncated(flight.part)?;
        }
        self.again(token, flight)
    }

    /// A read that comes to nothing may have met the end of the file: it was checked, but somebody may have cut it since.
    fn check_not_truncated(&self, part: Part) -> Result<()> {
        // SAFETY: the file is open for as long as the driver lives.
        let file = unsafe { BorrowedFd::borrow_raw(self.fd) };
        let status = rustix::fs::fstat(file).map_err(|cause| self.failure(part.file_offset, cause.into()))?;
        let length = u64::try_from(status.st_size).unwrap_or(0);
        if part.file_offset + part.length as u64 <= length {
            return Ok(());
        }
        let message = format!("the image ends at {length}, before the end of a page that its bitmap names");
        Err(Error::new(ErrorKind::ImageInvalid, message).at_offset(part.file_offset))
    }

    fn again(&mut self, token: usize, flight: Flight) -> Result<()> {
        if flight.stalls > MAX_STALLS {
            let cause = io::Error::from_raw_os_error(libc::EAGAIN);
            return Err(self.failure(flight.part.file_offset, cause));
        }
        if flight.stalls > STALLS_BEFORE_SLEEP {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.submit(token, flight)
    }

    fn finish(&mut self, token: usize, slot: usize) {
        self.unused.push(token);
        self.outstanding[slot] -= 1;
        if self.outstanding[slot] == 0 {
            debug_assert!(!self.finished.contains(&slot), "slot {slot} finished twice");
            self.finished.push(slot);
        }
    }

    fn failure(&self, offset: u64, cause: io::Error) -> Error {
        let verb = match self.direction {
            // No buffer of ours can say so, but guest memory that was taken away after it was found there.
            Direction::Read if is_of_memory(&cause) => "reading the image into the guest's memory",
            Direction::Read => "reading the image",
            Direction::Write => "writing the image",
        };
        Error::os(format!("{verb} failed at offset {offset}"), cause).at_offset(offset)
    }
}

fn is_of_memory(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EFAULT | libc::EHWPOISON))
}

fn is_transient(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))
}
