//! Another process's memory: read and written by its addresses.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Segment;
use crate::{Error, ErrorKind, Result};

/// Most pieces that one process_vm_readv or process_vm_writev takes (UIO_MAXIOV).
const MAX_PIECES: usize = 1024;

const ACCESS_HINT: &str =
    "this takes the same user and a kernel.yama.ptrace_scope that allows it, or CAP_SYS_PTRACE";

/// A process whose memory is read or written.
///
/// A pidfd tells whether it still lives, so that its number, given to another process, is never mistaken for it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    pagemap: File,
    /// /proc/PID/mem, opened when it is first needed: that takes more rights than the rest.
    memory: OnceLock<File>,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl Process {
    /// Opens the process with the number `pid`.
    ///
    /// # Errors
    /// `GuestGone` if there is none, `Permission` if its memory map is closed to us, `HostUnsupported` if the kernel
    /// lacks pidfds or /proc/PID/pagemap.
    pub fn open(pid: i32) -> Result<Self> {
        let gone = || Error::new(ErrorKind::GuestGone, format!("there is no process {pid}"));
        let number = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or_else(gone)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| match errno {
            // A thread's number is EINVAL or, since Linux 6.9, ENOENT.
            rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT => gone(),
            errno => Error::os(format!("opening a pidfd of process {pid} failed"), errno),
        })?;
        let pagemap = open_pagemap(pid).map_err(|error| if has_exited(&pidfd) { gone() } else { error })?;
        let process = Self { pid: number, pidfd, pagemap, memory: OnceLock::new() };
        // If it lives now, the number was its own when the files were opened.
        process.check_alive()?;
        Ok(process)
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Whether the process still lives.
    ///
    /// # Errors
    /// `GuestGone` if it does not.
    pub fn check_alive(&self) -> Result<()> {
        if has_exited(&self.pidfd) { Err(self.gone()) } else { Ok(()) }
    }

    pub(super) fn gone(&self) -> Error {
        Error::new(ErrorKind::GuestGone, format!("process {} has ended", self.pid()))
    }

    pub(super) fn pagemap(&self) -> &File {
        &self.pagemap
    }

    /// Learns whether the process's memory may be read and written, without touching any of it.
    ///
    /// # Errors
    /// `Permission` if not, or `GuestGone`.
    pub fn check_access(&self) -> Result<()> {
        let mut byte = 0_u8;
        // The kernel checks the right before the address: no process has memory at 0, so EFAULT means yes.
        let segment = Segment { at: 0, buffer: &raw mut byte, length: 1 };
        // SAFETY: the segment is the one byte of a local variable.
        match unsafe { self.vm_transfer(Direction::Read, &[segment]) } {
            Err(cause) if cause.raw_os_error() != Some(libc::EFAULT) => {
                Err(self.failure(Direction::Read, 0, cause))
            }
            _ => self.check_alive(),
        }
    }

    /// Copies from the process's memory; all of it or an error.
    ///
    /// # Safety
    /// Every segment's buffer must be valid for writes of its length, and nobody else may access it meanwhile.
    pub(super) unsafe fn read(&self, segments: Vec<Segment>) -> Result<()> {
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { self.transfer(Direction::Read, segments) }
    }

    /// Copies into the process's memory; all of it or an error.
    ///
    /// # Safety
    /// Every segment's buffer must be valid for reads of its length, and nobody may write to it meanwhile.
    pub(super) unsafe fn write(&self, segments: Vec<Segment>) -> Result<()> {
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { self.transfer(Direction::Write, segments) }
    }

    /// # Safety
    /// As for [`Self::read`] or [`Self::write`], as `direction` says.
    unsafe fn transfer(&self, direction: Direction, mut segments: Vec<Segment>) -> Result<()> {
        let mut next = 0;
        while next < segments.len() {
            self.check_alive()?;
            let batch = &segments[next..segments.len().min(next + MAX_PIECES)];
            // SAFETY: the batch's buffers are the caller's, cut only at the front by what has been moved.
            let moved = match unsafe { self.vm_transfer(direction, batch) } {
                Ok(moved) => moved,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) if cause.raw_os_error() == Some(libc::EFAULT) => 0,
                Err(cause) => return Err(self.failure(direction, segments[next].at, cause)),
            };
            if moved == 0 {
                // SAFETY: as above, for one of them.
                unsafe { self.mem_transfer(direction, segments[next]) }?;
                next += 1;
            } else {
                next = advance(&mut segments, next, moved);
            }
        }
        Ok(())
    }

    /// One process_vm_readv or process_vm_writev of at most [`MAX_PIECES`] segments; returns the bytes moved.
    ///
    /// # Safety
    /// As for [`Self::transfer`].
    unsafe fn vm_transfer(&self, direction: Direction, batch: &[Segment]) -> io::Result<usize> {
        let iovec = |base: *mut u8, length| libc::iovec { iov_base: base.cast(), iov_len: length };
        let local: Vec<_> = batch.iter().map(|segment| iovec(segment.buffer, segment.length)).collect();
        let remote: Vec<_> = batch
            .iter()
            .map(|segment| iovec(std::ptr::without_provenance_mut(address(segment.at)), segment.length))
            .collect();
        let (count, pid) = (batch.len() as libc::c_ulong, self.pid());
        let moved = match direction {
            // SAFETY: both arrays have `count` elements, and the local ones name buffers the caller lets be written.
            Direction::Read => unsafe {
                libc::process_vm_readv(pid, local.as_ptr(), count, remote.as_ptr(), count, 0)
            },
            // SAFETY: both arrays have `count` elements, and the local ones name buffers the caller lets be read.
            Direction::Write => unsafe {
                libc::process_vm_writev(pid, local.as_ptr(), count, remote.as_ptr(), count, 0)
            },
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    /// The same for one segment by /proc/PID/mem, which also reaches pages that the process itself may not read or
    /// write (a ROM backend of QEMU is mapped so), but goes page by page.
    ///
    /// # Safety
    /// As for [`Self::transfer`].
    unsafe fn mem_transfer(&self, direction: Direction, mut segment: Segment) -> Result<()> {
        let memory = self.memory()?;
        while segment.length > 0 {
            let moved = match direction {
                Direction::Read => {
                    // SAFETY: the caller lets these bytes be written and keeps everybody else away.
                    let bytes = unsafe { segment.uninit() };
                    rustix::io::pread(memory, bytes, segment.at)
                        .map(|(read, _)| read.len())
                        .map_err(io::Error::from)
                }
                // SAFETY: the caller lets these bytes be read and lets nobody write to them.
                Direction::Write => memory.write_at(unsafe { segment.bytes() }, segment.at),
            };
            match moved {
                Ok(0) => return Err(self.gone()),
                Ok(moved) => segment.advance(moved),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(self.failure(direction, segment.at, cause)),
            }
        }
        Ok(())
    }

    fn memory(&self) -> Result<&File> {
        if let Some(memory) = self.memory.get() {
            return Ok(memory);
        }
        let pid = self.pid();
        let memory =
            OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).map_err(|cause| {
                Error::os(format!("opening the memory of process {pid} failed; {ACCESS_HINT}"), cause)
            })?;
        // As in `open`: the file is this process's if it lives now.
        self.check_alive()?;
        Ok(self.memory.get_or_init(|| memory))
    }

    fn failure(&self, direction: Direction, at: u64, cause: io::Error) -> Error {
        let verb = match direction {
            Direction::Read => "reading",
            Direction::Write => "writing",
        };
        let error =
            Error::os(format!("{verb} the memory of process {} at {at:#x} failed", self.pid()), cause);
        match error.kind {
            ErrorKind::Permission => Error { message: format!("{}; {ACCESS_HINT}", error.message), ..error },
            ErrorKind::GuestGone => self.gone(),
            _ => error,
        }
    }
}

fn open_pagemap(pid: i32) -> Result<File> {
    File::open(format!("/proc/{pid}/pagemap")).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => {
            Error::os("the kernel has no /proc/PID/pagemap", cause).with_kind(ErrorKind::HostUnsupported)
        }
        _ => Error::os(format!("reading the memory map of process {pid} failed; {ACCESS_HINT}"), cause),
    })
}

/// Drops `moved` bytes from the front of `segments[next..]`; returns the first segment that is left.
fn advance(segments: &mut [Segment], mut next: usize, mut moved: usize) -> usize {
    while let Some(segment) = segments.get_mut(next).filter(|_| moved > 0) {
        let step = moved.min(segment.length);
        segment.advance(step);
        moved -= step;
        if segment.length == 0 {
            next += 1;
        }
    }
    next
}

/// A pidfd is readable once its process has ended.
fn has_exited(pidfd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one initialised pollfd is passed, and a timeout of 0 does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & libc::POLLIN != 0
}

/// Addresses of a 64-bit process fit a pointer of ours; one that does not is refused by the kernel as this one is.
fn address(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}
