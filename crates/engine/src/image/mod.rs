//! The image on the disk: how it comes to be there whole or not at all, and what direct I/O on it needs.

mod areas;
mod device;
mod new_file;
mod reader;
mod segments;
mod writer;

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

pub use areas::{PageArea, PageAreas};
pub use new_file::PARTIAL_SUFFIX;
pub use reader::ImageReader;
pub use segments::takes_small_segments;
pub use writer::ImageWriter;

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

#[cfg(test)]
mod tests;
