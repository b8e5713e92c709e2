//! Requests in flight from one thread, with short results and transient errors handled once for every engine.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, SeekFrom};
use slab::Slab;

use super::chunks::Chunk;
use super::{Control, Options, to_usize};
use crate::bitmap::PageRun;
use crate::image::{ImageReader, PageAreas};
use crate::io::{self as engines, Completion, Direction, Io, Queue, set_up_error};
use crate::pool::Pool;
use crate::{Error, ErrorKind, PAGE, Result};

/// How often a request may come back without progress (EAGAIN, EINTR, a short result of less than a page).
const MAX_STALLS: u32 = 64;
/// From this many stalls on, the thread sleeps a millisecond before the request is tried again.
const STALLS_BEFORE_SLEEP: u32 = 8;

/// The image whose pages a transfer moves, and how.
pub(super) struct Target<'a> {
    pub io: &'a dyn Io,
    pub options: Options,
    pub direction: Direction,
    pub file: BorrowedFd<'a>,
    /// What errors call the file.
    pub path: &'a Path,
    pub areas: &'a PageAreas,
}

impl<'a> Target<'a> {
    /// An image to be read.
    pub fn reading(image: &'a ImageReader, io: &'a dyn Io, options: Options) -> Self {
        let (file, path, areas) = (image.fd(), &image.path, &image.areas);
        Self { io, options, direction: Direction::Read, file, path, areas }
    }
}

/// Pages on their way between their place in the image and memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub pages: PageRun,
    /// Where the first of them is in memory.
    pub address: *mut u8,
}

impl Request {
    /// Pages of a chunk whose first byte is at `start` in memory.
    pub fn within(chunk: &Chunk, pages: PageRun, start: *mut u8) -> Self {
        Self { pages, address: start.wrapping_add(chunk.place(pages.bytes().start)) }
    }
}

/// One thread's queue, and which slots have requests in flight.
pub(super) struct Requests<'a> {
    queue: Box<dyn Queue + 'a>,
    target: &'a Target<'a>,
    control: &'a Control,
    /// What is in flight, by its token.
    flights: Slab<Flight>,
    /// Of each slot.
    outstanding: Vec<usize>,
    /// Slots without any.
    free: Vec<usize>,
    completions: Vec<Completion>,
}

/// What is still to be moved of a request.
#[derive(Debug, Clone, Copy)]
struct Flight {
    slot: usize,
    offset: u64,
    address: *mut u8,
    length: usize,
    stalls: u32,
}

impl<'a> Requests<'a> {
    /// Requests of the slots of `pool`, of which none has any yet.
    ///
    /// # Errors
    /// `HostUnsupported` if the engine cannot be set up.
    pub fn new(target: &'a Target<'a>, pool: &'a Pool, control: &'a Control) -> Result<Self> {
        let queue = target.io.queue(target.options.requests(), pool);
        Ok(Self {
            queue: queue.map_err(|cause| set_up_error(target.io.name(), cause))?,
            target,
            control,
            flights: Slab::new(),
            outstanding: vec![0; pool.slots()],
            free: (0..pool.slots()).collect(),
            completions: Vec::new(),
        })
    }

    /// Starts the requests of `slot` for pages of `block`, waiting for others first while the queue is full.
    ///
    /// # Safety
    /// The requests' bytes must be valid, and not be touched by the caller, until the slot was returned by
    /// [`Self::take_free`] or this was dropped.
    pub unsafe fn start(&mut self, slot: usize, block: usize, requests: &mut Vec<Request>) -> Result<()> {
        // All are counted before any can end, for the slot is free with the last one.
        self.outstanding[slot] = requests.len();
        if requests.is_empty() {
            self.free.push(slot);
        }
        for Request { pages, address } in requests.drain(..) {
            while self.flights.len() >= self.target.options.requests() as usize {
                self.wait()?;
            }
            let offset = self.target.areas.file_offset(block, pages.bytes().start);
            let length = to_usize(pages.length());
            self.submit(Flight { slot, offset, address, length, stalls: 0 })?;
        }
        Ok(())
    }

    /// A slot all of whose requests have ended; waits for one if need be.
    ///
    /// # Errors
    /// The first request that failed for good. The others are still in flight; dropping this waits for them.
    pub fn take_free(&mut self) -> Result<usize> {
        loop {
            match self.free.pop() {
                Some(slot) => return Ok(slot),
                None => self.wait()?,
            }
        }
    }

    /// Waits until at least one request has moved on.
    fn wait(&mut self) -> Result<()> {
        self.queue.wait(&mut self.completions).map_err(|cause| Error::os("waiting for I/O failed", cause))?;
        self.control.count_completions(self.completions.len());
        while let Some(completion) = self.completions.pop() {
            self.complete(completion)?;
        }
        Ok(())
    }

    fn submit(&mut self, flight: Flight) -> Result<()> {
        let Flight { offset, address: buffer, length, .. } = flight;
        let (direction, fd) = (self.target.direction, self.target.file.as_raw_fd());
        // What an engine cannot take at once is a short result.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let token = self.flights.insert(flight) as u64;
        // SAFETY: the caller leaves the bytes alone until the slot is free or this, and with it the queue, is gone; the file is
        // borrowed for as long.
        let pushed =
            unsafe { self.queue.push(engines::Request { token, direction, fd, offset, buffer, length }) };
        pushed.map_err(|cause| self.failure(offset, cause))
    }

    fn complete(&mut self, completion: Completion) -> Result<()> {
        let unknown = || Error::internal("the I/O engine completed a request that it was not given");
        let mut flight = self.flights.try_remove(to_usize(completion.token)).ok_or_else(unknown)?;
        let moved = match completion.result {
            Ok(moved) => moved as usize,
            Err(cause) if is_transient(&cause) => 0,
            Err(cause) => return Err(self.failure(flight.offset, cause)),
        };
        if moved >= flight.length {
            self.end(flight.slot);
            return Ok(());
        }
        // Direct I/O can only go on at a page boundary; what lies behind the last one is moved again.
        let whole_pages = moved - moved % PAGE;
        flight.address = flight.address.wrapping_add(whole_pages);
        flight.offset += whole_pages as u64;
        flight.length -= whole_pages;
        if whole_pages > 0 {
            flight.stalls = 0;
        } else {
            self.stall(&mut flight)?;
        }
        self.submit(flight)
    }

    /// Counts a request that has not moved on, and gives up on it in the end.
    fn stall(&self, flight: &mut Flight) -> Result<()> {
        if self.target.direction == Direction::Read {
            self.check_not_truncated(flight)?;
        }
        flight.stalls += 1;
        if flight.stalls > MAX_STALLS {
            return Err(self.failure(flight.offset, io::Error::from_raw_os_error(libc::EAGAIN)));
        }
        if flight.stalls > STALLS_BEFORE_SLEEP {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// A read that comes to nothing may have met the end of the file: it was checked, but somebody may have cut it since.
    fn check_not_truncated(&self, flight: &Flight) -> Result<()> {
        let (length, what) =
            length_of(self.target.file).map_err(|cause| self.failure(flight.offset, cause))?;
        if flight.offset + flight.length as u64 <= length {
            return Ok(());
        }
        let message = format!("the {what} ends before the end of a page that the image's bitmap names");
        Err(self.located(Error::new(ErrorKind::ImageInvalid, message), flight.offset))
    }

    fn end(&mut self, slot: usize) {
        self.outstanding[slot] -= 1;
        if self.outstanding[slot] == 0 {
            self.free.push(slot);
        }
    }

    fn failure(&self, offset: u64, cause: io::Error) -> Error {
        let verb = match self.target.direction {
            // No buffer of ours can say so, but guest memory that was taken away after it was found there.
            Direction::Read if is_of_memory(&cause) => "reading the image into the guest's memory",
            Direction::Read => "reading the image",
            Direction::Write if is_of_memory(&cause) => "reading the guest's memory to write the image",
            Direction::Write => "writing the image",
        };
        let error = match cause.raw_os_error() {
            // What io_uring says of a request for which it would have needed a thread more.
            Some(libc::ECANCELED) => {
                let message =
                    format!("{verb} failed: the kernel could start no thread for it (ulimit -u, pids.max)");
                Error::os(message, cause).with_kind(ErrorKind::HostUnsupported)
            }
            _ => Error::os(format!("{verb} failed at offset {offset}"), cause),
        };
        self.located(error, offset)
    }

    fn located(&self, error: Error, offset: u64) -> Error {
        error.at_offset(offset).at_path(self.target.path)
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
