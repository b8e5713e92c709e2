//! Memory that the embedding program names itself: a file, an fd, or a range of a process.

use std::fs::{File, OpenOptions};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use mapram_engine::memory::{Backing, FileRange, FileSystem, Memory, Region};
use mapram_engine::{Error, Result};
use rustix::fs::OFlags;

use super::in_process::{BlockAddress, ProcessOpener, finish, page_bytes};
use crate::descriptor;

/// A RAM block whose memory the caller names by `file`, by `fd`, or by `pid` and `address`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedMemory {
    /// The block's name, for messages.
    pub name: String,
    /// Bytes; a multiple of the page size.
    pub length: u64,
    /// First byte in the file; page-aligned. 0 for memory of a process.
    pub offset: u64,
    /// A regular file that is at least `offset` plus `length` bytes long.
    pub file: Option<PathBuf>,
    /// Such a file that is already open. It is duplicated; its position may be moved.
    pub fd: Option<RawFd>,
    /// The number of the process that has the memory mapped.
    pub pid: Option<i32>,
    /// The first address there; page-aligned.
    pub address: Option<u64>,
}

/// Opens memory that the caller names, for reading only or for writing too.
///
/// # Errors
/// As for [`open_guest`](super::open_guest); also `NotFound`, and `Usage` for a block that is not named in exactly one
/// way, a file that is too short, or an fd that is open for reading only or for appending and is to be written.
pub fn open_named(blocks: &[NamedMemory], writable: bool) -> Result<Memory> {
    let mut regions = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        regions.extend(open_block(index, block, writable)?);
    }
    finish(blocks.iter().map(|block| block.length).collect(), regions, writable)
}

fn open_block(index: usize, block: &NamedMemory, writable: bool) -> Result<Vec<Region>> {
    let NamedMemory { name, length, offset, file, fd, pid, address } = block;
    match (file, *fd, *pid, *address) {
        (Some(path), None, None, None) => {
            // Opening a fifo would wait for its other end; a regular file ignores the flag.
            let mut options = OpenOptions::new();
            let opened = options.read(true).write(writable).custom_flags(libc::O_NONBLOCK).open(path);
            let region = opened
                .map_err(|cause| Error::os("opening a memory file failed", cause))
                .and_then(|file| file_region(index, block, file));
            Ok(vec![region.map_err(|error| error.at_path(path))?])
        }
        (None, Some(fd), None, None) => Ok(vec![file_region(index, block, duplicate(fd, name, writable)?)?]),
        (None, None, Some(pid), Some(address)) if *offset == 0 => {
            let mut opener = ProcessOpener::new(pid, writable)?;
            let block = BlockAddress { name: name.clone(), address, length: *length };
            let found = opener.regions(index, &block)?;
            opener.check_access(&found)?;
            Ok(found)
        }
        _ => {
            let message = format!("RAM block {name} needs a file, an fd, or a pid and an address");
            Err(Error::usage(message))
        }
    }
}

fn file_region(index: usize, block: &NamedMemory, file: File) -> Result<Region> {
    let NamedMemory { name, length, offset, .. } = block;
    let usage = |message| Err(Error::usage(message));
    let metadata = file
        .metadata()
        .map_err(|cause| Error::os(format!("asking for the size of RAM block {name} failed"), cause))?;
    if !metadata.is_file() {
        return usage(format!("the memory of RAM block {name} is not a regular file"));
    }
    let bytes = metadata.len();
    if offset.checked_add(*length).is_none_or(|end| end > bytes) {
        return usage(format!(
            "RAM block {name} needs {length} bytes at {offset} of a file that has {bytes}"
        ));
    }
    let file_system = FileSystem::of(&file)?;
    let path = block.file.as_deref().map(Into::into);
    let file = FileRange { file: Arc::new(file), path, offset: *offset };
    let backing = Backing::Shared { file, process: None };
    let page_bytes = page_bytes(file_system);
    Ok(Region { block: index, offset: 0, length: *length, backing, page_bytes, writable: true })
}

/// A duplicate of the caller's fd that is fit for what is to be done.
fn duplicate(fd: RawFd, name: &str, writable: bool) -> Result<File> {
    let file = File::from(
        descriptor::duplicate(fd)
            .map_err(|error| Error { message: format!("RAM block {name}: {}", error.message), ..error })?,
    );
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|errno| {
        Error::os(format!("asking how fd {fd} of RAM block {name} is open failed"), errno)
    })?;
    let mode = flags & OFlags::ACCMODE;
    // pwrite(2) to a file that is open for appending ignores the offset.
    let fit = match (writable, mode) {
        (true, mode) => mode == OFlags::RDWR && !flags.contains(OFlags::APPEND),
        (false, mode) => mode != OFlags::WRONLY,
    };
    if fit {
        return Ok(file);
    }
    let wanted = if writable { "for reading and writing, not for appending" } else { "for reading" };
    Err(Error::usage(format!("fd {fd} of RAM block {name} is not open {wanted}")))
}
