//! What kind of file system a memory file is on.

use std::os::fd::AsFd;

use rustix::fs::fstatfs;

use crate::{Error, Result};

/// A file system as far as it matters to memory that lies on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// Memory without a disk; memfds are there too.
    Tmpfs,
    /// Huge pages of this many bytes.
    Hugetlbfs {
        /// Bytes in a page.
        page_bytes: u64,
    },
    /// FUSE or virtiofs: another program serves it.
    Fuse,
    /// Any other.
    Other,
}

impl FileSystem {
    /// The one that `file` is on.
    ///
    /// # Errors
    /// Whatever the kernel said.
    pub fn of(file: impl AsFd) -> Result<Self> {
        let stats = fstatfs(file)
            .map_err(|errno| Error::os("asking for a memory file's file system failed", errno))?;
        // Values of include/uapi/linux/magic.h; they have 32 bits, which some platforms sign-extend.
        Ok(match stats.f_type.cast_unsigned() & 0xffff_ffff {
            0x0102_1994 => Self::Tmpfs,
            0x9584_58f6 => Self::Hugetlbfs { page_bytes: stats.f_bsize.cast_unsigned() },
            0x6573_5546 => Self::Fuse,
            _ => Self::Other,
        })
    }
}
