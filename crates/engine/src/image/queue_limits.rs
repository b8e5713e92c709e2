//! How gladly a disk takes requests of many small pieces of memory.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::FileType;

use super::{device_number, kind};
use crate::PAGE_BYTES;

/// Requests that are cut shorter than this cost more than a copy that keeps them whole.
const LONG_REQUEST_BYTES: u64 = 512 << 10;
/// A device that joins no more than this does not gain from memory in larger pieces.
const SMALL_SEGMENT_BYTES: u64 = 64 << 10;

/// Whether the device of `file` takes a request of 4 KiB segments as gladly as one of few large ones: its limits leave such
/// requests long, and it joins little memory to larger segments anyway, as a loop device does. A virtio disk does not: every
/// segment is a descriptor for its host. `false` where there is no telling, as of file systems without a device of their own
/// (btrfs, NFS, overlayfs), and for NVMe, which was never measured.
///
/// The limits are those of Documentation/ABI/stable/sysfs-block.
#[must_use]
pub fn takes_small_segments(file: BorrowedFd<'_>) -> bool {
    let Ok(status) = rustix::fs::fstat(file) else { return false };
    let device = if kind(status) == FileType::BlockDevice { status.st_rdev } else { status.st_dev };
    let directory = Path::new("/sys/dev/block").join(device_number(device));
    let limit = |name: &str| {
        let read = |queue: &str| std::fs::read_to_string(directory.join(queue).join(name)).ok();
        // A partition has the limits of its disk.
        read("queue").or_else(|| read("../queue"))?.trim().parse::<u64>().ok()
    };
    let longest = limit("max_segments").unwrap_or(0).saturating_mul(PAGE_BYTES);
    longest >= LONG_REQUEST_BYTES
        && limit("max_segment_size").is_some_and(|bytes| bytes <= SMALL_SEGMENT_BYTES)
}
