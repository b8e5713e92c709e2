//! The image on the disk: how it comes to be there whole or not at all, and what direct I/O on it needs.

mod areas;
mod device;
mod new_file;
mod opened;
mod queue_limits;
mod reader;
mod writer;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dev, FileType, OFlags, Stat, StatxFlags, major, minor};
use rustix::io::{Errno, retry_on_intr};

use crate::io::{Blocking, Files};
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

pub use areas::{PageArea, PageAreas};
pub use new_file::PARTIAL_SUFFIX;
pub use queue_limits::takes_small_segments;
pub use reader::ImageReader;
pub use writer::ImageWriter;

/// What to do where direct I/O does not work.
const WITHOUT_DIRECT: &str = "go without it, or use another file system";

/// What direct I/O on a file has to be aligned to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Addresses of buffers.
    pub memory: u32,
    /// File offsets and lengths.
    pub offset: u32,
}

/// What direct I/O on `file` has to be aligned to, or `None` if its file system has no direct I/O.
#[must_use]
pub fn direct_alignment(file: BorrowedFd<'_>) -> Option<Alignment> {
    // Linux 6.1 and file systems that fill it in; zero says that there is no direct I/O.
    let status = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let status = status.filter(|status| status.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    if let Some(status) = status {
        let (memory, offset) = (status.stx_dio_mem_align, status.stx_dio_offset_align);
        return (memory != 0 && offset != 0).then_some(Alignment { memory, offset });
    }
    // Others are asked by trying, and a page suits every disk that is not stranger than most.
    let flags = rustix::fs::fcntl_getfl(file).ok()?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).ok()?;
    rustix::fs::fcntl_setfl(file, flags).ok()?;
    Some(Alignment { memory: 4096, offset: 4096 })
}

/// Refuses direct I/O on `file`, which errors call `path`, unless it moves single pages: an image's pages are wherever they are.
///
/// # Errors
/// `HostUnsupported`
fn require_direct(file: BorrowedFd<'_>, path: &Path) -> Result<()> {
    check_alignment(direct_alignment(file)).map_err(|error| error.at_path(path))
}

fn check_alignment(found: Option<Alignment>) -> Result<()> {
    let Alignment { memory, offset } = found.ok_or_else(no_direct)?;
    let unit = u64::from(memory.max(offset));
    if unit <= PAGE_BYTES {
        return Ok(());
    }
    let message =
        format!("direct I/O there needs units of {unit} bytes, more than a guest page; {WITHOUT_DIRECT}");
    Err(Error::new(ErrorKind::HostUnsupported, message))
}

fn no_direct() -> Error {
    let message = format!("this file system has no direct I/O; {WITHOUT_DIRECT}");
    Error::new(ErrorKind::HostUnsupported, message)
}

/// Switches direct I/O on `file`, which errors call `path`, on or off.
fn set_direct(io: &dyn Files, file: BorrowedFd<'_>, path: &Path, direct: bool) -> Result<()> {
    let refused = |cause| match cause {
        Errno::INVAL => no_direct(),
        _ => Error::os("switching direct I/O on or off failed", cause),
    };
    retry_on_intr(|| io.set_direct(file, direct)).map_err(|cause| refused(cause).at_path(path))
}

/// Regular file, directory, block device, ...
fn kind(status: Stat) -> FileType {
    FileType::from_raw_mode(status.st_mode)
}

/// A device as sysfs and mountinfo call it.
fn device_number(device: Dev) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// The error about what `path` is or leads to, which `what` says.
fn refusal(kind: ErrorKind, path: &Path, what: &str) -> Error {
    Error::new(kind, format!("{} {what}", path.display())).at_path(path)
}

/// Opens `file` anew for reading, for direct I/O if `direct`: the same file, whatever stands under its name by now. `path` is
/// what errors call it.
///
/// # Errors
/// `HostUnsupported` without direct I/O on pages, or the errno of a call.
pub fn reopen(file: BorrowedFd<'_>, path: &Path, direct: bool) -> Result<File> {
    let opened = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|cause| Error::os("opening the image anew failed", cause).at_path(path))?;
    if direct {
        // Not by open(2): a FUSE server is told what is opened how, and may then use direct I/O itself and fail.
        set_direct(&Blocking, opened.as_fd(), path, true)?;
        require_direct(opened.as_fd(), path)?;
    }
    Ok(opened)
}

#[cfg(test)]
mod tests;
