//! Memory that is a file: which parts hold data, and reading and writing it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::segment::verb;
use super::{FileRange, FileSystem, Segment, spans};
use crate::io::Direction;
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

/// The pages of `span` (page-aligned file offsets) that touch data; all others are holes or lie behind the end of
/// the file. Nothing is allocated by asking.
pub(super) fn data_spans(file: &File, span: Range<u64>) -> Result<Vec<Range<u64>>> {
    // The server of FUSE finds the holes, and knows nothing of pages written through a mapping that are still here.
    // The guest stands still while tmpfs looks at every page; a file that has all its blocks is spared that. One with
    // blocks behind its end may have holes all the same, which then are read as the zeros that they are.
    if FileSystem::of(file)? == FileSystem::Fuse || allocated_bytes(file)? >= length(file)? {
        return spans_to_end(file, span);
    }
    let mut found = Vec::new();
    let mut at = span.start;
    while at < span.end
        && let Some(data) = seek_to(file, SeekFrom::Data(at))?.filter(|data| *data < span.end)
        && let Some(hole) = seek_to(file, SeekFrom::Hole(data))?
    {
        // A file system's blocks may be smaller than a page.
        let first = data - data % PAGE_BYTES;
        at = hole.next_multiple_of(PAGE_BYTES).min(span.end);
        spans::push(&mut found, first..at);
    }
    Ok(found)
}

/// `None` where no data follows.
fn seek_to(file: &File, position: SeekFrom) -> Result<Option<u64>> {
    match seek(file, position) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(Error::os("finding the data of a memory file failed", errno)),
    }
}

/// All pages of `span` up to the end of the file.
pub(super) fn spans_to_end(file: &File, span: Range<u64>) -> Result<Vec<Range<u64>>> {
    let data = span.start..span.end.min(length(file)?.next_multiple_of(PAGE_BYTES));
    Ok(if data.is_empty() { Vec::new() } else { vec![data] })
}

/// Bytes of the file that are backed by blocks or pages.
pub(super) fn allocated_bytes(file: &File) -> Result<u64> {
    // st_blocks counts 512 bytes whatever the file system's block size is.
    Ok(metadata(file)?.blocks() * 512)
}

/// What tells two files apart.
pub(super) fn identity(file: &File) -> Result<(u64, u64)> {
    metadata(file).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The file's length in bytes.
pub(super) fn length(file: &File) -> Result<u64> {
    metadata(file).map(|metadata| metadata.len())
}

fn metadata(file: &File) -> Result<std::fs::Metadata> {
    file.metadata().map_err(|cause| Error::os("asking for the size of a memory file failed", cause))
}

/// Copies every segment from the file or to it; what lies behind the end of the file, on its last page, reads zero.
///
/// # Errors
/// `Io` where the file has become too short to hold a page that was found in it.
///
/// # Safety
/// As for [`Segment::transfer`], of every segment.
pub(super) unsafe fn transfer(file: &FileRange, direction: Direction, segments: Vec<Segment>) -> Result<()> {
    for mut segment in segments {
        // SAFETY: the caller's promise.
        let moved = unsafe { segment.transfer(direction, &file.file) };
        let Segment { at, buffer, length } = segment;
        moved.map_err(|errno| file.name(failure(direction, at, errno)))?;
        if length > 0 {
            if direction == Direction::Write || at.next_multiple_of(PAGE_BYTES) < at + length as u64 {
                return Err(file.name(taken_away(direction).at_offset(at)));
            }
            // SAFETY: the rest of a buffer that the caller lets be written.
            unsafe { std::ptr::write_bytes(buffer, 0, length) };
        }
    }
    Ok(())
}

/// The error where a file has become too short meanwhile.
pub(super) fn taken_away(direction: Direction) -> Error {
    let message = format!("a page of the guest's memory was taken away while {} it", verb(direction));
    Error::new(ErrorKind::Io, message)
}

fn failure(direction: Direction, at: u64, errno: Errno) -> Error {
    let error = Error::os(format!("{} a memory file at offset {at} failed", verb(direction)), errno);
    match errno {
        // How the kernel says that a file was opened for reading only.
        Errno::BADF => error.with_kind(ErrorKind::Usage),
        _ => error,
    }
}
