//! Requests in flight from one thread, with short results and transient errors handled once for every engine.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, SeekFrom};

use super::{Control, to_usize};
use crate::bitmap::PageRun;
use crate::image::PageAreas;
use crate::io::{self as engines, Completion, Direction, Queue};
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

/// How often a request may come back without progress (EAGAIN, EINTR, a short result of less than a page).
const MAX_STALLS: u32 = 64;
/// From this many stalls on, the thread sleeps a millisecond before the request is tried again.
const STALLS_BEFORE_SLEEP: u32 = 8;

/// Contiguous bytes on their way between memory and a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Which way.
    pub direction: Direction,
    /// File offset in bytes.
    pub offset: u64,
    /// First byte in our memory.
    pub buffer: *mut u8,
    /// Bytes.
    pub length: usize,
}

impl<'a> Request<'a> {
    /// The pages `run` of a block, between their place in an image and `buffer`, where the first of them is.
    pub fn of_pages(
        file: BorrowedFd<'a>,
        direction: Direction,
        areas: &PageAreas,
        (block, run): (usize, PageRun),
        buffer: *mut u8,
    ) -> Self {
        let offset = areas.file_offset(block, run.first * PAGE_BYTES);
        Self { file, direction, offset, buffer, length: to_usize(run.count * PAGE_BYTES) }
    }
}

/// One thread's queue, and which slots have requests in flight.
pub(super) struct Requests<'a> {
    queue: Box<dyn Queue + 'a>,
    /// What errors call the file.
    path: &'a Path,
    control: &'a Control,
    flights: Vec<Option<Flight<'a>>>,
    unused: Vec<usize>,
    outstanding: Vec<usize>,
    finished: Vec<usize>,
    completions: Vec<Completion>,
}

#[derive(Debug, Clone, Copy)]
struct Flight<'a> {
    slot: usize,
    request: Request<'a>,
    stalls: u32,
}

impl<'a> Requests<'a> {
    /// Requests of `slots` slots, at most `capacity` at once, on the file that errors call `path`.
    pub fn new(
        queue: Box<dyn Queue + 'a>,
        slots: usize,
        capacity: usize,
        path: &'a Path,
        control: &'a Control,
    ) -> Self {
        Self {
            queue,
            path,
            control,
            flights: vec![None; capacity],
            unused: (0..capacity).rev().collect(),
            outstanding: vec![0; slots],
            finished: Vec::new(),
            completions: Vec::with_capacity(capacity),
        }
    }

    /// Starts a request of `slot`, waiting for others first while the queue is full.
    ///
    /// # Safety
    /// The request's bytes must be valid, and not be touched by the caller, until the slot was returned by
    /// [`Self::take_finished`] or this was dropped.
    pub unsafe fn start(&mut self, slot: usize, request: Request<'a>) -> Result<()> {
        // Counted before waiting, or the slot's earlier requests, finishing meanwhile, would finish the whole slot.
        self.outstanding[slot] += 1;
        while self.unused.is_empty() {
            self.wait()?;
        }
        if let Some(token) = self.unused.pop() {
            self.submit(token, Flight { slot, request, stalls: 0 })?;
        }
        Ok(())
    }

    /// A slot all of whose requests have finished, if there is one.
    pub fn take_finished(&mut self) -> Option<usize> {
        self.finished.pop()
    }

    /// Waits until at least one request has moved on.
    ///
    /// # Errors
    /// The first request that failed for good. The others are still in flight; dropping this waits for them.
    pub fn wait(&mut self) -> Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.queue.wait(&mut completions).map_err(|cause| Error::os("waiting for I/O failed", cause))?;
        self.control.count_completions(completions.len());
        let outcome = completions.drain(..).try_for_each(|completion| self.complete(completion));
        self.completions = completions;
        outcome
    }

    fn submit(&mut self, token: usize, flight: Flight<'a>) -> Result<()> {
        let Request { file, direction, offset, buffer, length } = flight.request;
        self.flights[token] = Some(flight);
        let length = u32::try_from(length).map_err(|_| {
            Error::new(ErrorKind::Internal, format!("a request of {length} bytes is too long"))
        })?;
        let fd = file.as_raw_fd();
        let request = engines::Request { token: token as u64, direction, fd, offset, buffer, length };
        // SAFETY: the caller leaves the bytes alone until the slot has finished or this, and with it the queue, is gone;
        // the file is borrowed for as long.
        let pushed = unsafe { self.queue.push(request) };
        pushed.map_err(|cause| self.failure(&flight.request, cause))
    }

    fn complete(&mut self, completion: Completion) -> Result<()> {
        let token = usize::try_from(completion.token).unwrap_or(usize::MAX);
        let Some(mut flight) = self.flights.get_mut(token).and_then(Option::take) else {
            let message = "the I/O engine completed a request that it was not given";
            return Err(Error::new(ErrorKind::Internal, message));
        };
        let request = &mut flight.request;
        let moved = match completion.result {
            Ok(moved) => moved as usize,
            Err(cause) if is_transient(&cause) => 0,
            Err(cause) => return Err(self.failure(request, cause)),
        };
        if moved >= request.length {
            self.finish(token, flight.slot);
            return Ok(());
        }
        // Direct I/O can only go on at a page boundary; what lies behind the last one is moved again.
        let whole_pages = moved - moved % to_usize(PAGE_BYTES);
        request.buffer = request.buffer.wrapping_add(whole_pages);
        request.offset += whole_pages as u64;
        request.length -= whole_pages;
        flight.stalls = if whole_pages == 0 { flight.stalls + 1 } else { 0 };
        if request.direction == Direction::Read && whole_pages == 0 {
            self.check_not_truncated(request)?;
        }
        self.again(token, flight)
    }

    /// A read that comes to nothing may have met the end of the file: it was checked, but somebody may have cut it since.
    fn check_not_truncated(&self, request: &Request<'_>) -> Result<()> {
        let (length, what) = length_of(request.file).map_err(|cause| self.failure(request, cause))?;
        if request.offset + request.length as u64 <= length {
            return Ok(());
        }
        let message = format!("the {what} ends before the end of a page that the image's bitmap names");
        Err(Error::new(ErrorKind::ImageInvalid, message).at_offset(request.offset).at_path(self.path))
    }

    fn again(&mut self, token: usize, flight: Flight<'a>) -> Result<()> {
        if flight.stalls > MAX_STALLS {
            let cause = io::Error::from_raw_os_error(libc::EAGAIN);
            return Err(self.failure(&flight.request, cause));
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

    fn failure(&self, request: &Request<'_>, cause: io::Error) -> Error {
        let offset = request.offset;
        let verb = match request.direction {
            // No buffer of ours can say so, but guest memory that was taken away after it was found there.
            Direction::Read if is_of_memory(&cause) => "reading the image into the guest's memory",
            Direction::Read => "reading the image",
            Direction::Write if is_of_memory(&cause) => "reading the guest's memory to write the image",
            Direction::Write => "writing the image",
        };
        Error::os(format!("{verb} failed at offset {offset}"), cause).at_offset(offset).at_path(self.path)
    }
}

/// The length of a file or a device in bytes, and which of them it is. A device's length is not among its attributes.
fn length_of(file: BorrowedFd<'_>) -> io::Result<(u64, &'static str)> {
    let is_file = FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode).is_file();
    Ok((rustix::fs::seek(file, SeekFrom::End(0))?, if is_file { "file" } else { "device" }))
}

fn is_of_memory(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EFAULT | libc::EHWPOISON))
}

fn is_transient(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))
}
