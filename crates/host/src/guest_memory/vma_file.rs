//! Opening the file that a process has mapped, by whichever way we are allowed.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mapram_engine::memory::Process;
use mapram_engine::{Error, ErrorKind, Result};

use crate::maps::Vma;

/// Opens the regular file that `vma` of `process` maps.
///
/// Through /proc/PID/map_files, which takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; else through one of the process's
/// own fds, or by the path. Whatever was opened must be the file that is mapped.
///
/// # Errors
/// `HostUnsupported`, naming what is mapped, if that is no regular file or none that can be recognised; `Permission` if
/// the kernel does not let us open it; or whatever the kernel said.
pub(super) fn open(process: &Process, vma: &Vma, writable: bool) -> Result<File> {
    let opened = find(process.pid(), vma, writable);
    process.check_alive()?;
    let path = Path::new(&vma.path);
    opened.map_err(|refusal| refusal.explain(process.pid(), path, writable).at_path(path))
}

/// Why a mapped file was not opened.
enum Refusal {
    /// It is something else than a regular file.
    Irregular,
    /// It is not this one.
    Other,
    /// The kernel said so.
    Kernel(io::Error),
}

impl Refusal {
    fn explain(self, pid: i32, path: &Path, writable: bool) -> Error {
        let shown = path.display();
        let unsupported = |message| Error::new(ErrorKind::HostUnsupported, message);
        match self {
            Self::Irregular => unsupported(format!(
                "process {pid} has {shown} mapped there, which is neither anonymous memory nor a regular file"
            )),
            Self::Other => unsupported(format!(
                "process {pid} has memory in {shown}, but what /proc/{pid}/map_files leads to is not the file that \
                 its memory map shows"
            )),
            Self::Kernel(cause) => {
                let wanted = if writable { "reading and writing" } else { "reading" };
                let message = format!(
                    "process {pid} has memory in {shown}, which cannot be opened for {wanted}: neither through \
                     /proc/{pid}/map_files (this takes CAP_SYS_ADMIN), nor by an fd of the process, nor by its path"
                );
                Error::os(message, cause)
            }
        }
    }
}

/// Tries every way to the file; if none leads there, the first one's reason is told.
fn find(pid: i32, vma: &Vma, writable: bool) -> Result<File, Refusal> {
    // What has no place in a file system has a name like `anon_inode:[io_uring]`.
    if !vma.path.as_encoded_bytes().starts_with(b"/") {
        return Err(Refusal::Irregular);
    }
    let mapped = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end));
    open_checked(&mapped, vma, writable).or_else(|first| {
        for path in fds_of(pid, vma).into_iter().chain([PathBuf::from(&vma.path)]) {
            match open_checked(&path, vma, writable) {
                Err(Refusal::Other | Refusal::Kernel(_)) => {}
                decided => return decided,
            }
        }
        Err(first)
    })
}

/// The process's own fds that show the path of what is mapped. The others are not looked at: its disks may hang.
fn fds_of(pid: i32, vma: &Vma) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let paths = entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == vma.path)).collect()
}

/// Opens `path` if it is the regular file that `vma` maps. Anything else is not opened at all: opening a device or a
/// pipe may block or have effects.
fn open_checked(path: &Path, vma: &Vma, writable: bool) -> Result<File, Refusal> {
    check_mapped(path, &path.metadata().map_err(Refusal::Kernel)?, vma)?;
    let file = OpenOptions::new().read(true).write(writable).open(path).map_err(Refusal::Kernel)?;
    check_mapped(path, &file.metadata().map_err(Refusal::Kernel)?, vma)?;
    Ok(file)
}

/// Refuses the file at `path`, which has this `metadata`, unless it is the one that `vma` maps and a regular one.
fn check_mapped(path: &Path, metadata: &Metadata, vma: &Vma) -> Result<(), Refusal> {
    // Btrfs and overlayfs give stat(2) another device number than the memory map. A link in /proc that shows the same
    // path as the map, with the same inode number, is then taken for the same file.
    let same_path = || std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == vma.path);
    if metadata.ino() != vma.inode || (metadata.dev() != vma.device && !same_path()) {
        Err(Refusal::Other)
    } else if metadata.is_file() {
        Ok(())
    } else {
        Err(Refusal::Irregular)
    }
}
