//! How gladly a disk takes requests of many small pieces of memory.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, major, minor};

use super::kind;
use crate::PAGE_BYTES;

/// Requests that are cut shorter than this cost more than a copy that keeps them whole.
const LONG_REQUEST_BYTES: u64 = 512 << 10;
/// A device that joins no more than this does not gain from memory in larger pieces.
const SMALL_SEGMENT_BYTES: u64 = 64 << 10;

/// Whether the device of `file` takes a request of 4 KiB segments as gladly as one of few large ones: its limits leave such
/// requests long, and it joins little memory to larger segments anyway, as a loop device does. A virtio disk does not: every
/// segment is a descriptor for its host. `false` where there is no telling, and for NVMe, which was never measured.
///
/// The limits are those of Documentation/ABI/stable/sysfs-block.
#[must_use]
pub fn takes_small_segments(file: BorrowedFd<'_>) -> bool {
    let Some(limits) = limits_of(file) else { return false };
    let limit = |name| std::fs::read_to_string(limits.join(name)).ok()?.trim().parse::<u64>().ok();
    let (Some(segments), Some(segment_bytes)) = (limit("max_segments"), limit("max_segment_size")) else {
        return false;
    };
    segments.saturating_mul(PAGE_BYTES) >= LONG_REQUEST_BYTES && segment_bytes <= SMALL_SEGMENT_BYTES
}

/// The directory with the limits of the device that `file` is or lies on; `None` for file systems without a device of their
/// own (btrfs, NFS, overlayfs).
fn limits_of(file: BorrowedFd<'_>) -> Option<PathBuf> {
    let status = rustix::fs::fstat(file).ok()?;
    let is_device = kind(status) == FileType::BlockDevice;
    let device = if is_device { status.st_rdev } else { status.st_dev };
    let directory = Path::new("/sys/dev/block").join(format!("{}:{}", major(device), minor(device)));
    // A partition has the limits of its disk.
    [directory.join("queue"), directory.join("../queue")].into_iter().find(|limits| limits.exists())
}
