//! Another process's memory: read and written by its addresses.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use rustix::io::{Errno, pread, retry_on_intr};
use rustix::thread::{CapabilitySet, capabilities};

use super::pidfd::no_process;
use super::segment::verb;
use super::{Pidfd, Segment};
use crate::io::Direction;
use crate::{Error, ErrorKind, Result, to_usize};

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
    pub(super) pagemap: File,
    /// /proc/PID/mem, opened when it is first needed: that takes more rights than the rest.
    memory: OnceLock<File>,
    /// Whether part of its memory is swapped out.
    has_swapped: bool,
}

impl Process {
    /// Opens the process with the number `pid`.
    ///
    /// # Errors
    /// `GuestGone` if there is none, `Permission` if its memory map is closed to us, `HostUnsupported` if the kernel
    /// lacks pidfds or /proc/PID/pagemap.
    pub fn open(pid: i32) -> Result<Self> {
        let pidfd = Pidfd::open(pid)?;
        pidfd.check_number_in_proc(pid)?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|cause| match cause.kind() {
            _ if pidfd.has_ended() => no_process(pid),
            io::ErrorKind::NotFound => {
                Error::os("the kernel has no /proc/PID/pagemap", cause).with_kind(ErrorKind::HostUnsupported)
            }
            _ => failure(format!("reading the memory map of process {pid} failed"), cause),
        })?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let has_swapped = status.lines().any(|line| line.starts_with("VmSwap:") && !line.ends_with(" 0 kB"));
        let process = Self { pid, pidfd, pagemap, memory: OnceLock::new(), has_swapped };
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
        let pid = self.pid;
        // Any address has an entry, used or not.
        match retry_on_intr(|| pread(&self.pagemap, &mut [0; 8], 0)) {
            Ok(0) | Err(Errno::SRCH) => Err(self.gone()),
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::os(format!("reading the page map of process {pid} failed"), errno)),
        }
    }

    fn gone(&self) -> Error {
        let message = format!("process {} has ended or executed another program", self.pid);
        Error::new(ErrorKind::GuestGone, message)
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

    /// Copies from the process's memory or to it; all of it or an error.
    ///
    /// # Safety
    /// As for [`Segment::transfer`], of every segment.
    pub(super) unsafe fn transfer(&self, direction: Direction, mut segments: Vec<Segment>) -> Result<()> {
        self.check_alive()?;
        let is_cooled = self.has_swapped && direction == Direction::Read;
        let read = if is_cooled { segments.clone() } else { Vec::new() };
        let mut next = 0;
        while next < segments.len() {
            let batch = &segments[next..segments.len().min(next + MAX_PIECES)];
            // SAFETY: the batch's buffers are the caller's, cut only at the front by what has been moved.
            match unsafe { self.vm_transfer(direction, batch) } {
                Ok(0) | Err(Errno::FAULT) if direction == Direction::Read => {
                    // SAFETY: as above, for one of them.
                    unsafe { self.mem_transfer(direction, segments[next]) }?;
                    next += 1;
                }
                Err(errno) if is_forbidden(errno) => {
                    for &segment in &segments[next..] {
                        // SAFETY: as above.
                        unsafe { self.mem_transfer(direction, segment) }?;
                    }
                    next = segments.len();
                }
                Ok(mut moved) => {
                    while moved > 0 {
                        let step = moved.min(segments[next].length);
                        segments[next].advance(step);
                        moved -= step;
                        next += usize::from(segments[next].length == 0);
                    }
                }
                // Not left to retry_on_intr, as every call needs a check right before it.
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failure(direction, segments[next].at, errno)),
            }
            self.check_alive()?;
        }
        self.make_cold(&read);
        Ok(())
    }

    /// Tells the kernel that the guest does not need what we have read, as far as we may (CAP_SYS_NICE). Reading brings pages back
    /// from swap as if the guest had asked for them: where its memory cgroup is full, the kernel then finds nothing that it can
    /// evict, and kills the guest (seen on Linux 6.18).
    fn make_cold(&self, segments: &[Segment]) {
        let (advise, pidfd) = (libc::SYS_process_madvise, self.pidfd.0.as_raw_fd());
        for pages in segments.chunks(MAX_PIECES).map(remote) {
            // SAFETY: the array has as many elements as is said, and what they name loses neither place nor content.
            unsafe { libc::syscall(advise, pidfd, pages.as_ptr(), pages.len(), libc::MADV_COLD, 0) };
        }
    }

    /// One process_vm_readv or process_vm_writev of at most [`MAX_PIECES`] segments; returns the bytes moved.
    ///
    /// # Safety
    /// As for [`Self::transfer`].
    unsafe fn vm_transfer(&self, direction: Direction, batch: &[Segment]) -> rustix::io::Result<usize> {
        let local: Vec<_> = batch.iter().map(|segment| iovec(segment.buffer, segment.length)).collect();
        let remote = remote(batch);
        let count = batch.len() as libc::c_ulong;
        let call = match direction {
            Direction::Read => libc::process_vm_readv,
            Direction::Write => libc::process_vm_writev,
        };
        // SAFETY: both arrays have `count` elements, and the local ones name buffers of which the caller promises what is asked.
        let moved = unsafe { call(self.pid, local.as_ptr(), count, remote.as_ptr(), count, 0) };
        usize::try_from(moved).map_err(|_| last_errno())
    }

    /// The same for one segment by /proc/PID/mem, which goes page by page. It also reaches pages that the process itself may
    /// not read or write, so nothing is written by it that another call has refused to write.
    ///
    /// # Safety
    /// As for [`Self::transfer`].
    unsafe fn mem_transfer(&self, direction: Direction, mut segment: Segment) -> Result<()> {
        let memory = self.memory()?;
        // SAFETY: the caller's promise.
        match unsafe { segment.transfer(direction, memory) } {
            Ok(()) if segment.length > 0 => Err(self.gone()),
            moved => moved.map_err(|errno| self.failure(direction, segment.at, errno)),
        }
    }

    fn memory(&self) -> Result<&File> {
        if let Some(memory) = self.memory.get() {
            return Ok(memory);
        }
        let pid = self.pid;
        let opened = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory =
            opened.map_err(|cause| failure(format!("opening the memory of process {pid} failed"), cause))?;
        // The file belongs to the memory that the process has now: the guest's, if that is still there.
        self.check_alive()?;
        Ok(self.memory.get_or_init(|| memory))
    }

    fn failure(&self, direction: Direction, at: u64, errno: Errno) -> Error {
        // Another program in the guest's place may fail in any way.
        match self.check_alive() {
            Err(gone) => gone,
            Ok(()) if errno == Errno::SRCH => self.gone(),
            Ok(()) => {
                let what =
                    format!("{} the memory of process {} at {at:#x} failed", verb(direction), self.pid);
                failure(what, errno)
            }
        }
    }
}

fn iovec(base: *mut u8, length: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: length }
}

/// Where the segments are in the other process.
fn remote(segments: &[Segment]) -> Vec<libc::iovec> {
    let at = |segment: &Segment| std::ptr::without_provenance_mut(to_usize(segment.at));
    segments.iter().map(|segment| iovec(at(segment), segment.length)).collect()
}

/// The error for a system call that concerns another process's memory; where it was refused, it says what that takes.
fn failure(message: String, cause: impl Into<io::Error>) -> Error {
    let error = Error::os(message, cause);
    match error.kind {
        ErrorKind::Permission => Error { message: format!("{}; {}", error.message, access_hint()), ..error },
        _ => error,
    }
}

/// Whether process_vm_readv or process_vm_writev itself is refused: by the kernel, where we may not touch that process at all, or by a
/// seccomp filter, which may leave /proc/PID/mem to us.
fn is_forbidden(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::NOSYS)
}

/// What it takes to reach another process's memory, or what else is in the way of one who has that.
fn access_hint() -> String {
    let may_trace = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE));
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let is_filtered = status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2'));
    if may_trace {
        let in_the_way = match is_filtered {
            true => "a seccomp filter (a container's profile, say)",
            false => "a security module or a user namespace",
        };
        format!("this process has CAP_SYS_PTRACE, but {in_the_way} forbids it")
    } else {
        let also = if is_filtered { ", and a seccomp filter that does not forbid it" } else { "" };
        format!(
            "this takes the same user and a kernel.yama.ptrace_scope that allows it, or CAP_SYS_PTRACE{also}"
        )
    }
}

/// Whether the process could not have some page of its own memory.
pub(super) fn is_fault(error: &Error) -> bool {
    error.cause.as_ref().and_then(io::Error::raw_os_error) == Some(libc::EFAULT)
}

/// The error of the libc call that has just failed.
pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::process::{Child, Command, Stdio};

    use linux_raw_sys::general::{uffdio_api, uffdio_range, uffdio_register, uffdio_zeropage};
    use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE};
    use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, userfaultfd};

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
        unsafe { process.transfer(Direction::Read, vec![segment]) }?;
        Ok(page)
    }

    fn write(process: &Process, at: u64, mut page: [u8; 4096]) -> Result<()> {
        let segment = Segment { at, buffer: page.as_mut_ptr(), length: page.len() };
        // SAFETY: as above.
        unsafe { process.transfer(Direction::Write, vec![segment]) }
    }

    /// A page of ours that is not there yet: whoever reads into it stays in the midst of that call.
    struct LatePage {
        faults: File,
        at: u64,
    }

    impl LatePage {
        fn new() -> Option<Self> {
            // SAFETY: nothing but the page below is handed to it.
            let fd = match unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) } {
                Ok(fd) => fd,
                Err(errno) => {
                    eprintln!("SKIPPED: this takes userfaultfd(2): {errno}");
                    return None;
                }
            };
            let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
            let at = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, protection, flags) }.unwrap() as u64;
            let page = Self { faults: fd.into(), at };
            page.ioctl(UFFDIO_API, &mut uffdio_api { api: 0xAA, features: 0, ioctls: 0 });
            let mode = 1; // UFFDIO_REGISTER_MODE_MISSING
            page.ioctl(UFFDIO_REGISTER, &mut uffdio_register { range: page.range(), mode, ioctls: 0 });
            Some(page)
        }

        fn range(&self) -> uffdio_range {
            uffdio_range { start: self.at, len: 4096 }
        }

        fn ioctl<T>(&self, request: u32, argument: &mut T) {
            // SAFETY: the argument is what the request takes.
            let outcome =
                unsafe { libc::ioctl(self.faults.as_raw_fd(), request.into(), std::ptr::from_mut(argument)) };
            assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
        }

        /// Waits for who reads into it.
        fn wait(&self) {
            (&self.faults).read_exact(&mut [0; 32]).unwrap();
        }

        fn come(&self) {
            self.ioctl(UFFDIO_ZEROPAGE, &mut uffdio_zeropage { range: self.range(), mode: 0, zeropage: 0 });
        }
    }

    #[test]
    fn what_was_read_while_the_guest_executed_a_program_is_not_taken_for_its_memory() {
        let Some(page) = LatePage::new() else { return };
        let mut shell = Shell::start();
        let guest = Process::open(shell.pid()).unwrap();
        let stack = shell.stack();
        let outcome = std::thread::scope(|scope| {
            let read = scope.spawn(|| {
                let buffer = std::ptr::with_exposed_provenance_mut(to_usize(page.at));
                // SAFETY: the segment is the page, which nobody else uses.
                unsafe { guest.transfer(Direction::Read, vec![Segment { at: stack, buffer, length: 4096 }]) }
            });
            page.wait();
            shell.execute();
            page.come();
            read.join().unwrap()
        });
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::GuestGone);
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
