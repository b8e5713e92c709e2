//! Another process's memory: read and written by its addresses.

use std::fs::{File, OpenOptions};
use std::io;
use std::sync::OnceLock;

use rustix::io::{Errno, pread, pwrite, retry_on_intr};
use rustix::thread::{CapabilitySet, capabilities};

use super::{Pidfd, Segment};
use crate::io::Direction;
use crate::{Error, ErrorKind, Result};

/// Most pieces that one process_vm_readv or process_vm_writev takes (UIO_MAXIOV).
const MAX_PIECES: usize = 1024;

/// A process whose memory is read or written.
///
/// process_vm_readv(2) and process_vm_writev(2) take a number, which may be given to another process, and which a
/// process keeps when it executes another program. So a pidfd tells before and after each call whether the process
/// still lives, and /proc/PID/pagemap, which belongs to the memory itself, whether that memory still does. No other
/// program's bytes are thereby taken for the guest's, but a write cannot be taken back: if the process executes another
/// program, or ends and its number is given away, in the microseconds between check and call, then that call, of at
/// most 1024 pieces, goes to the other program before it is an error.
///
/// Whatever else keeps the memory in use after an exec hides that from the checks: a child of vfork(2), or a vhost
/// device whose file the new program has inherited. One of our own threads in the midst of a call hides it from the
/// others until that call, which then fails, is over.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: Pidfd,
    /// Reads as empty once the memory that the process had when it was opened is gone.
    pagemap: File,
    /// /proc/PID/mem, opened when it is first needed: that takes more rights than the rest.
    memory: OnceLock<File>,
}

impl Process {
    /// Opens the process with the number `pid`.
    ///
    /// # Errors
    /// `GuestGone` if there is none, `Permission` if its memory map is closed to us, `HostUnsupported` if the kernel
    /// lacks pidfds or /proc/PID/pagemap.
    pub fn open(pid: i32) -> Result<Self> {
        let gone = || Error::new(ErrorKind::GuestGone, format!("there is no process {pid}"));
        let pidfd = Pidfd::open(pid)?;
        match number_in_proc(&pidfd)? {
            Some(found) if found == pid => {}
            // So the kernel says that it has ended.
            Some(-1) => return Err(gone()),
            _ => return Err(foreign_proc()),
        }
        let pagemap = open_pagemap(pid).map_err(|error| if pidfd.has_ended() { gone() } else { error })?;
        let process = Self { pid, pidfd, pagemap, memory: OnceLock::new() };
        // If it lives now, the number was its own when the files were opened.
        process.check_alive()?;
        Ok(process)
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the process still lives and has the memory that it had when it was opened.
    ///
    /// # Errors
    /// `GuestGone` if it has ended or executed another program, or whatever the kernel said.
    pub fn check_alive(&self) -> Result<()> {
        // The pidfd also tells of an end after which something else still keeps the memory.
        if self.pidfd.has_ended() {
            return Err(self.gone());
        }
        let mut entry = [0; 8];
        // Any address has an entry, used or not.
        match retry_on_intr(|| pread(&self.pagemap, &mut entry, 0)) {
            Ok(0) | Err(Errno::SRCH) => Err(self.gone()),
            Ok(_) => Ok(()),
            Err(errno) => {
                Err(Error::os(format!("reading the page map of process {} failed", self.pid()), errno))
            }
        }
    }

    fn gone(&self) -> Error {
        let pid = self.pid();
        Error::new(ErrorKind::GuestGone, format!("process {pid} has ended or executed another program"))
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
        // The kernel checks the right before the address, so EFAULT means yes; hardly a process has memory at 0.
        let segment = Segment { at: 0, buffer: &raw mut byte, length: 1 };
        // SAFETY: the segment is the one byte of a local variable.
        match retry_on_intr(|| unsafe { self.vm_transfer(Direction::Read, &[segment]) }) {
            Ok(_) | Err(Errno::FAULT) => self.check_alive(),
            Err(errno) if is_forbidden(errno) => self.memory().map(drop),
            Err(errno) => Err(self.failure(Direction::Read, 0, errno)),
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
        self.check_alive()?;
        let mut next = 0;
        while next < segments.len() {
            let batch = &segments[next..segments.len().min(next + MAX_PIECES)];
            // SAFETY: the batch's buffers are the caller's, cut only at the front by what has been moved.
            match unsafe { self.vm_transfer(direction, batch) } {
                Ok(0) | Err(Errno::FAULT) if matches!(direction, Direction::Read) => {
                    // SAFETY: as above, for one of them.
                    unsafe { self.mem_transfer(direction, segments[next]) }?;
                    next += 1;
                }
                Err(errno) if is_forbidden(errno) => {
                    for &segment in &segments[next..] {
                        // SAFETY: as above.
                        unsafe { self.mem_transfer(direction, segment) }?;
                    }
                    return self.check_alive();
                }
                Ok(moved) => next = advance(&mut segments, next, moved),
                // Not left to retry_on_intr, as every call needs a check right before it.
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failure(direction, segments[next].at, errno)),
            }
            self.check_alive()?;
        }
        Ok(())
    }

    /// One process_vm_readv or process_vm_writev of at most [`MAX_PIECES`] segments; returns the bytes moved.
    ///
    /// # Safety
    /// As for [`Self::transfer`].
    unsafe fn vm_transfer(&self, direction: Direction, batch: &[Segment]) -> rustix::io::Result<usize> {
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
        usize::try_from(moved).map_err(|_| last_errno())
    }

    /// The same for one segment by /proc/PID/mem, which goes page by page. It also reaches pages that the process itself may
    /// not read or write, so nothing is written by it that another call has refused to write.
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
                    retry_on_intr(|| pread(memory, &mut *bytes, segment.at).map(|(read, _)| read.len()))
                }
                Direction::Write => {
                    // SAFETY: the caller lets these bytes be read and lets nobody write to them.
                    let bytes = unsafe { segment.bytes() };
                    retry_on_intr(|| pwrite(memory, bytes, segment.at))
                }
            };
            match moved {
                Ok(0) => return Err(self.gone()),
                Ok(moved) => segment.advance(moved),
                Err(errno) => return Err(self.failure(direction, segment.at, errno)),
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
                Error::os(format!("opening the memory of process {pid} failed; {}", access_hint()), cause)
            })?;
        // The file belongs to the memory that the process has now: the guest's, if that is still there.
        self.check_alive()?;
        Ok(self.memory.get_or_init(|| memory))
    }

    fn failure(&self, direction: Direction, at: u64, errno: Errno) -> Error {
        // Another program in the guest's place may fail in any way.
        if let Err(gone) = self.check_alive() {
            return gone;
        }
        let verb = match direction {
            Direction::Read => "reading",
            Direction::Write => "writing",
        };
        let error =
            Error::os(format!("{verb} the memory of process {} at {at:#x} failed", self.pid()), errno);
        match error.kind {
            ErrorKind::Permission => {
                Error { message: format!("{}; {}", error.message, access_hint()), ..error }
            }
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
        _ => Error::os(format!("reading the memory map of process {pid} failed; {}", access_hint()), cause),
    })
}

/// Whether process_vm_readv or process_vm_writev itself is refused: by the kernel, where we may not touch that process at all, or by a
/// seccomp filter, which may leave /proc/PID/mem to us.
fn is_forbidden(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::NOSYS)
}

/// What it takes to reach another process's memory, or what else is in the way of one who has that.
fn access_hint() -> &'static str {
    let may_trace = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE));
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let is_filtered = status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2'));
    match (may_trace, is_filtered) {
        (true, true) => {
            "this process has CAP_SYS_PTRACE, but a seccomp filter (a container's profile, say) forbids it"
        }
        (true, false) => {
            "this process has CAP_SYS_PTRACE, but a security module or a user namespace forbids it"
        }
        (false, true) => {
            "this takes the same user and a kernel.yama.ptrace_scope that allows it, or CAP_SYS_PTRACE, and a seccomp filter \
             that does not forbid it"
        }
        (false, false) => {
            "this takes the same user and a kernel.yama.ptrace_scope that allows it, or CAP_SYS_PTRACE"
        }
    }
}

/// Whether the process could not have some page of its own memory.
pub(super) fn is_fault(error: &Error) -> bool {
    error.cause.as_ref().and_then(io::Error::raw_os_error) == Some(libc::EFAULT)
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

/// The number that the process has in the pid namespace of /proc: /proc was perhaps mounted in another one than ours, and
/// then the same number leads to another process there. `None` if nothing of that namespace is told here.
fn number_in_proc(pidfd: &Pidfd) -> Result<Option<i32>> {
    let failure = |cause| Error::os("asking /proc for the number of a process failed", cause);
    match std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.number())) {
        Ok(text) => {
            let number = text.lines().find_map(|line| line.strip_prefix("Pid:"));
            Ok(number.and_then(|number| number.trim().parse().ok()))
        }
        // We are none of its processes.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(failure(cause)),
    }
}

fn foreign_proc() -> Error {
    let message =
        "/proc is of another pid namespace than mapram, so that no process can be told by it: mount one here";
    Error::new(ErrorKind::HostUnsupported, message).at_path("/proc")
}

/// The error of the libc call that has just failed.
pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Addresses of a 64-bit process fit a pointer of ours; one that does not is refused by the kernel as this one is.
fn address(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Child, Command, Stdio};

    /// A shell that executes `sleep` when it is told to; killed and reaped at the end.
    struct Shell(Child);

    impl Shell {
        fn start() -> Self {
            let mut command = Command::new("sh");
            let child = command.args(["-c", "read line; exec sleep 60"]).stdin(Stdio::piped()).spawn();
            Self(child.unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }

        fn execute(&mut self) {
            self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
            // The arguments are the last that a new program's stack gets.
            let arguments = format!("/proc/{}/cmdline", self.pid());
            while !std::fs::read(&arguments).unwrap().starts_with(b"sleep") {
                std::thread::yield_now();
            }
        }

        /// The address of the last page of the stack, which holds the program's name.
        fn stack(&self) -> u64 {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
            let line = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
            let (_, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            u64::from_str_radix(end, 16).unwrap() - 4096
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn read(process: &Process, at: u64) -> Result<[u8; 4096]> {
        let mut page = [0; 4096];
        let segment = Segment { at, buffer: page.as_mut_ptr(), length: page.len() };
        // SAFETY: the segment is the whole of a local variable.
        unsafe { process.read(vec![segment]) }?;
        Ok(page)
    }

    fn write(process: &Process, at: u64, mut page: [u8; 4096]) -> Result<()> {
        let segment = Segment { at, buffer: page.as_mut_ptr(), length: page.len() };
        // SAFETY: as above.
        unsafe { process.write(vec![segment]) }
    }

    /// The process keeps its number and its pidfd; only its memory is another's.
    #[test]
    fn a_program_executed_by_the_guest_is_neither_read_nor_written() {
        for memory_file_is_open in [false, true] {
            let mut shell = Shell::start();
            let guest = Process::open(shell.pid()).unwrap();
            if memory_file_is_open {
                guest.memory().unwrap();
            }
            write(&guest, shell.stack(), read(&guest, shell.stack()).unwrap()).unwrap();

            shell.execute();
            assert!(!guest.pidfd.has_ended());
            let gone = |result: Result<()>| assert_eq!(result.unwrap_err().kind, ErrorKind::GuestGone);
            let (program, stack) = (Process::open(shell.pid()).unwrap(), shell.stack());
            let before = read(&program, stack).unwrap();
            gone(guest.check_alive());
            gone(guest.check_access());
            gone(read(&guest, stack).map(drop));
            gone(write(&guest, stack, [0x5a; 4096]));
            let segment = Segment { at: stack, buffer: [0x5a; 4096].as_mut_ptr(), length: 4096 };
            // SAFETY: the segment is the whole of an array that lives until the call is over.
            gone(unsafe { guest.mem_transfer(Direction::Write, segment) });
            assert!(read(&program, stack).unwrap() == before, "the new program was written to");
        }
    }
}
