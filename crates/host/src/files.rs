//! Files that TypeScript cannot open itself, and room for them.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use mapram_engine::{Error, ErrorKind, Result};
use rustix::fs::{MemfdFlags, memfd_create};

/// An empty memfd, open for reading and writing, closed on exec. `name` is shown in /proc only.
///
/// # Errors
/// `Usage` for a name longer than 249 bytes or with a zero byte, or whatever the kernel said.
pub fn create_memfd(name: &str) -> Result<OwnedFd> {
    memfd_create(name, MemfdFlags::CLOEXEC).map_err(|errno| {
        let error = Error::os(format!("creating the memfd {name:?} failed"), errno);
        if errno == rustix::io::Errno::INVAL { error.with_kind(ErrorKind::Usage) } else { error }
    })
}

/// Opens an existing file or block device for reading, for direct I/O if asked.
///
/// # Errors
/// `NotFound`, `Permission` or `Io`; `HostUnsupported` where the file system has no direct I/O; `Usage` if it is
/// something else than a file or block device.
pub fn open_for_reading(path: &Path, direct: bool) -> Result<File> {
    // A pipe would make open(2) wait for a writer; O_NONBLOCK means nothing to files.
    let flags = libc::O_NONBLOCK | if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|cause| {
        match cause.raw_os_error() {
            Some(libc::EINVAL) if direct => {
                Error::os("the file system has no direct I/O; --no-direct goes without", cause)
                    .with_kind(ErrorKind::HostUnsupported)
            }
            _ => Error::os("opening the file failed", cause),
        }
        .at_path(path)
    })?;
    let kind = file
        .metadata()
        .map_err(|cause| Error::os("asking for the file's type failed", cause).at_path(path))?
        .file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    Err(Error::new(ErrorKind::Usage, "this is neither a file nor a block device").at_path(path))
}

/// Opens something on the file system of `path` that shows how I/O works there: the existing file, or a file without
/// a name in the directory.
///
/// # Errors
/// `NotFound`, `Permission`, `HostUnsupported` where files must have names, or whatever else the kernel said.
pub fn open_probe(path: &Path) -> Result<File> {
    if !path.is_dir() {
        return open_for_reading(path, false);
    }
    let options =
        OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(path);
    options.map_err(|cause| Error::os("creating a probe file failed", cause).at_path(path))
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
    fn only_files_are_opened_for_reading_and_pipes_do_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let (file, pipe) = (directory.path().join("file"), directory.path().join("pipe"));
        std::fs::write(&file, "x").unwrap();
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(open_for_reading(&file, false).is_ok());
        let kind = |path: &Path| open_for_reading(path, false).unwrap_err().kind;
        assert_eq!(kind(&pipe), ErrorKind::Usage);
        assert_eq!(kind(directory.path()), ErrorKind::Usage);
        assert_eq!(kind(&directory.path().join("missing")), ErrorKind::NotFound);
    }

    #[test]
    fn a_probe_file_has_no_name_and_is_on_the_same_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let probe = open_probe(directory.path()).unwrap();
        assert_eq!(probe.metadata().unwrap().dev(), directory.path().metadata().unwrap().dev());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(open_probe(&directory.path().join("missing")).unwrap_err().kind, ErrorKind::NotFound);
    }
}
