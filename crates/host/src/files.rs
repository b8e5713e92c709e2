//! Files that TypeScript cannot open itself, and room for them.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use mapram_engine::{Error, ErrorKind, Result};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create};
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

/// Bytes that an ordinary user may still write to the file system that holds `directory`; `None` if it does not say, as ramfs and
/// some FUSE servers, which claim to have no blocks at all.
///
/// # Errors
/// `NotFound`, `Permission` or `Io`, naming the directory.
pub fn free_bytes(directory: &Path) -> Result<Option<u64>> {
    let stats = rustix::fs::statvfs(directory)
        .map_err(|errno| Error::os("asking for free space failed", errno).at_path(directory))?;
    Ok((stats.f_blocks > 0).then(|| stats.f_bavail.saturating_mul(stats.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

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
        assert!(free_bytes(&std::env::temp_dir()).unwrap() > Some(0));
        // It has no blocks.
        assert_eq!(free_bytes(Path::new("/proc")).unwrap(), None);
        let error = free_bytes(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.path.as_deref(), Some(Path::new("/nowhere/at/all")));
    }
}
