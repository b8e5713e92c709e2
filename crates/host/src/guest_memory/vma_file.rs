//! Opening the file that a process has mapped, by whichever way we are allowed.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mapram_engine::memory::Process;
use mapram_engine::{Error, ErrorKind, Result};

use crate::maps::Vma;

/// `f_type` of hugetlbfs (include/uapi/linux/magic.h).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Opens the file that `vma` of `process` maps.
///
/// As root through /proc/PID/map_files; as the process's user, who may not, through one of the process's own fds, or
/// by the path. Whatever was opened must be the file that is mapped.
pub(super) fn open(process: &Process, vma: &Vma, writable: bool) -> Result<File> {
    let pid = process.pid();
    let mapped = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end));
    let opened = open_checked(&mapped, vma, writable).or_else(|cause| {
        let others = fds_of(pid).into_iter().chain([PathBuf::from(&vma.path)]);
        others.into_iter().find_map(|path| open_checked(&path, vma, writable).ok()).ok_or(cause)
    });
    process.check_alive()?;
    opened.map_err(|cause| {
        let wanted = if writable { "reading and writing" } else { "reading" };
        let path = Path::new(&vma.path);
        let message = format!(
            "process {pid} has memory in {}, which cannot be opened for {wanted}: neither through \
             /proc/{pid}/map_files (this takes CAP_SYS_ADMIN), nor by an fd of the process, nor by its path",
            path.display()
        );
        Error::os(message, cause).with_kind(ErrorKind::Permission).at_path(path)
    })
}

fn fds_of(pid: i32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Opens `path` if it is the regular file that `vma` maps. Anything else is not opened at all: opening a device or a
/// pipe may block or have effects.
fn open_checked(path: &Path, vma: &Vma, writable: bool) -> io::Result<File> {
    let other = || io::Error::from_raw_os_error(libc::ENOENT);
    if !is_mapped(path, &path.metadata()?, vma) {
        return Err(other());
    }
    let file = OpenOptions::new().read(true).write(writable).open(path)?;
    if is_mapped(path, &file.metadata()?, vma) { Ok(file) } else { Err(other()) }
}

/// Whether `metadata`, that of the file at `path`, is that of the file which `vma` maps.
fn is_mapped(path: &Path, metadata: &Metadata, vma: &Vma) -> bool {
    // Btrfs and overlayfs give stat(2) another device number than the memory map; the same path of a process's link
    // then tells that it is the same file.
    let same_path = || std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == vma.path);
    metadata.is_file() && metadata.ino() == vma.inode && (metadata.dev() == vma.device || same_path())
}

/// The page size of the file's memory in bytes if it is on hugetlbfs.
pub(super) fn huge_page_bytes(file: &File) -> Result<Option<u64>> {
    let stats = rustix::fs::fstatfs(file)
        .map_err(|errno| Error::os("asking for a memory file's file system failed", errno))?;
    // The magic number has 32 bits; some platforms sign-extend it.
    if stats.f_type.cast_unsigned() & 0xffff_ffff != HUGETLBFS_MAGIC {
        return Ok(None);
    }
    Ok(u64::try_from(stats.f_bsize).ok())
}
