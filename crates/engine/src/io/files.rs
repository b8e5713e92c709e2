//! The few calls that an image file's life needs, besides the transfers.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom, Stat};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Getter, Opcode, Setter, ioctl};

/// `_IO(0x12, 119)` of include/uapi/linux/fs.h.
const BLKDISCARD: Opcode = 0x1277;
/// `_IO(0x12, 94)` of the same file.
const BLKROGET: Opcode = 0x125e;

/// System calls on an image file and its directory, one method for each.
///
/// The default methods are the calls themselves and what every engine uses; the simulated engine overrides them to
/// inject faults. Each error is the errno of the call. EINTR is handed up: [`crate::image`] retries it, in one
/// place.
pub trait Files {
    /// Opens a directory for the calls below.
    fn open_directory(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
    }

    /// Creates a file that only its owner can read; EEXIST if anything has that name, a dangling link included.
    fn create(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
    }

    /// Opens a file that exists; never follows a link and never waits for the other end of a pipe.
    fn open_existing(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::empty())
    }

    /// The status of an open file.
    fn status(&self, file: BorrowedFd<'_>) -> Result<Stat> {
        rustix::fs::fstat(file)
    }

    /// The status of what has the name `name`; a link's own.
    fn status_at(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Result<Stat> {
        rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The status of what `path` leads to.
    fn status_of(&self, path: &Path) -> Result<Stat> {
        rustix::fs::stat(path)
    }

    /// Opens a device that nobody else has for himself; EBUSY if it is mounted, say.
    fn open_device(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
    }

    /// Whether a device takes no writes, though it may have been opened for them.
    fn is_read_only(&self, file: BorrowedFd<'_>) -> Result<bool> {
        // SAFETY: BLKROGET writes an int.
        let question = unsafe { Getter::<BLKROGET, libc::c_int>::new() };
        // SAFETY: as above.
        match unsafe { ioctl(file, question) } {
            Err(Errno::NOTTY) => Ok(false),
            answer => Ok(answer? != 0),
        }
    }

    /// Whether any process, this one included, has locked a part of the file by another open file (fcntl, not flock).
    fn is_locked(&self, file: BorrowedFd<'_>) -> Result<bool> {
        // SAFETY: all zeros is a valid flock: the whole file, from its start, and no process.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap_or_default();
        // SAFETY: F_OFD_GETLK reads and writes a struct flock, which `lock` is.
        let outcome = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
        if outcome < 0 {
            return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    /// Bytes in the file or the device.
    fn length(&self, file: BorrowedFd<'_>) -> Result<u64> {
        rustix::fs::seek(file, SeekFrom::End(0))
    }

    /// Reads into `bytes` from `offset`; returns how many were read.
    fn read_at(&self, file: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> Result<usize> {
        rustix::io::pread(file, bytes, offset)
    }

    /// Tells a device that these bytes hold nothing; EOPNOTSUPP if it cannot make use of that.
    fn discard(&self, file: BorrowedFd<'_>, bytes: Range<u64>) -> Result<()> {
        let range = [bytes.start, bytes.end.saturating_sub(bytes.start)];
        // SAFETY: BLKDISCARD reads two u64, offset and length, which `range` is.
        let order = unsafe { Setter::<BLKDISCARD, _>::new(range) };
        // SAFETY: as above.
        unsafe { ioctl(file, order) }
    }

    /// Locks the file for this open file alone; EWOULDBLOCK if another one holds the lock.
    fn lock(&self, file: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
    }

    /// Sets the file's length in bytes.
    fn set_length(&self, file: BorrowedFd<'_>, bytes: u64) -> Result<()> {
        rustix::fs::ftruncate(file, bytes)
    }

    /// Turns O_DIRECT on or off; EINVAL if the file system has none.
    fn set_direct(&self, file: BorrowedFd<'_>, direct: bool) -> Result<()> {
        let mut flags = rustix::fs::fcntl_getfl(file)?;
        flags.set(OFlags::DIRECT, direct);
        rustix::fs::fcntl_setfl(file, flags)
    }

    /// Writes `bytes` at `offset`; returns how many were written.
    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<usize> {
        rustix::io::pwrite(file, bytes, offset)
    }

    /// Makes the file's bytes and what is needed to read them durable.
    fn sync_data(&self, file: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::fdatasync(file)
    }

    /// Gives the file `from` the name `to`, replacing what has it.
    fn rename_over(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> Result<()> {
        rustix::fs::renameat(directory, from, directory, to)
    }

    /// Gives the file `from` the name `to`; EEXIST if anything has it, EINVAL or ENOSYS if the file system cannot
    /// rename without replacing.
    fn rename_new(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> Result<()> {
        rustix::fs::renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE)
    }

    /// Gives the file `from` the second name `to`; EEXIST if anything has it.
    fn link(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> Result<()> {
        rustix::fs::linkat(directory, from, directory, to, AtFlags::empty())
    }

    /// Removes the name `name`.
    fn unlink(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        rustix::fs::unlinkat(directory, name, AtFlags::empty())
    }

    /// Makes the directory's names durable.
    fn sync_directory(&self, directory: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::fsync(directory)
    }
}
