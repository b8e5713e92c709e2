//! Files that TypeScript cannot open itself, and room for them.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use mapram_engine::image;
use mapram_engine::{Error, ErrorKind, Result};
use rustix::fs::{FileType, MemfdFlags, SeekFrom, memfd_create};
use rustix::io::Errno;

/// An empty memfd, open for reading and writing, closed on exec. `name` is shown in /proc only.
///
/// # Errors
/// `Usage` for a name longer than 249 bytes or with a zero byte, or whatever the kernel said.
pub fn create_memfd(name: &str) -> Result<OwnedFd> {
    memfd_create(name, MemfdFlags::CLOEXEC).map_err(|errno| {
        let error = Error::os(format!("creating the memfd {name:?} failed"), errno);
        if errno == Errno::INVAL { error.with_kind(ErrorKind::Usage) } else { error }
    })
}

/// Opens anew, for reading, the file or block device that `file` is, for direct I/O if asked: what was checked is what is
/// read, whatever has its name by now. `path` is its name for messages.
///
/// # Errors
/// `Permission` or `Io`; `HostUnsupported` where there is no direct I/O on pages; `Usage` if it is something else than a
/// file or a block device.
pub fn reopen_for_reading(file: BorrowedFd<'_>, path: &Path, direct: bool) -> Result<File> {
    let kind = rustix::fs::fstat(file)
        .map_err(|cause| Error::os("asking for the image's type failed", cause).at_path(path))
        .map(|status| FileType::from_raw_mode(status.st_mode))?;
    if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
        return Err(Error::new(ErrorKind::Usage, "this is neither a file nor a block device").at_path(path));
    }
    image::reopen(file, direct).map_err(|error| error.at_path(path))
}

/// Bytes in a file or a block device.
///
/// # Errors
/// What lseek(2) said.
pub fn length_in_bytes(file: BorrowedFd<'_>) -> Result<u64> {
    rustix::fs::seek(file, SeekFrom::End(0))
        .map_err(|cause| Error::os("asking for the file's length failed", cause))
}

/// Has the file system of `directory` finish what it put off: XFS gives the blocks of removed files back when it gets to
/// it, which a sync hastens.
///
/// # Errors
/// `NotFound`, `Permission` or `Io`, naming the directory.
pub fn settle(directory: &Path) -> Result<()> {
    let synced = File::open(directory).and_then(|opened| Ok(rustix::fs::syncfs(opened)?));
    synced.map_err(|cause| Error::os("syncing the file system failed", cause).at_path(directory))
}

/// Bytes that an ordinary user may still write to the file system that holds `directory`.
///
/// # Errors
/// `NotFound`, `Permission` or `Io`, naming the directory.
pub fn free_bytes(directory: &Path) -> Result<u64> {
    let stats = rustix::fs::statvfs(directory)
        .map_err(|errno| Error::os("asking for free space failed", errno).at_path(directory))?;
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_memfd_is_written_and_read_back() {
        let mut file = File::from(create_memfd("mapram-test").unwrap());
        file.write_all(b"state").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "state");
        assert_eq!(create_memfd("a\0b").unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(create_memfd(&"a".repeat(300)).unwrap_err().kind, ErrorKind::Usage);
    }

    #[test]
    fn a_directory_has_room_and_a_missing_one_is_named() {
        assert!(free_bytes(&std::env::temp_dir()).unwrap() > 0);
        let error = free_bytes(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.path.as_deref(), Some(Path::new("/nowhere/at/all")));
    }

    #[test]
    fn what_is_reopened_is_the_same_file_and_errors_name_it_as_its_user_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        let again = reopen_for_reading(file.as_fd(), &path, false).unwrap();
        assert_eq!(again.metadata().unwrap().ino(), file.metadata().unwrap().ino());
        assert_eq!(length_in_bytes(again.as_fd()).unwrap(), 1);
        for (name, kind) in [("/proc/self/status", ErrorKind::HostUnsupported), ("/proc", ErrorKind::Usage)] {
            let error = reopen_for_reading(File::open(name).unwrap().as_fd(), &path, true).unwrap_err();
            assert_eq!((error.kind, error.path.as_deref()), (kind, Some(path.as_path())));
        }
    }
}
