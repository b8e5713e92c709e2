//! Memory that is a file: which parts hold data, and reading and writing it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};

use super::{FileSystem, Segment, spans};
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

/// The pages of `span` (page-aligned file offsets) that touch data; all others are holes or lie behind the end of
/// the file. Nothing is allocated by asking.
pub(super) fn data_spans(file: &File, span: Range<u64>) -> Result<Vec<Range<u64>>> {
    if FileSystem::of(file)? == FileSystem::Fuse {
        // Its server finds the holes, and knows nothing of pages written through a mapping that are still here.
        return spans_to_end(file, span);
    }
    // The guest stands still while tmpfs looks at every page; a file that has all its blocks is spared that. One with
    // blocks behind its end may have holes all the same, which then are read as the zeros that they are.
    if allocated_bytes(file)? >= length(file)? {
        return spans_to_end(file, span);
    }
    let mut found = Vec::new();
    let mut at = span.start;
    while at < span.end {
        let Some(data) = seek_to(file, SeekFrom::Data(at))?.filter(|data| *data < span.end) else {
            break;
        };
        let Some(hole) = seek_to(file, SeekFrom::Hole(data))? else {
            break;
        };
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

/// The same for hugetlbfs, which knows no holes: everything up to the end of the file, unless the file is empty.
pub(super) fn hugetlb_spans(file: &File, span: Range<u64>) -> Result<Vec<Range<u64>>> {
    if allocated_bytes(file)? == 0 { Ok(Vec::new()) } else { spans_to_end(file, span) }
}

/// All pages of `span` up to the end of the file.
fn spans_to_end(file: &File, span: Range<u64>) -> Result<Vec<Range<u64>>> {
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

/// Reads every segment from the file; what lies behind the end of the file, on its last page, reads zero.
///
/// # Errors
/// `Io` where the file has become too short to hold a page that was found in it.
///
/// # Safety
/// Every segment's buffer must be valid for writes of its length, and nobody else may access it meanwhile.
pub(super) unsafe fn read(file: &File, segments: Vec<Segment>) -> Result<()> {
    for mut segment in segments {
        while segment.length > 0 {
            // SAFETY: the caller lets these bytes be written and keeps everybody else away.
            let bytes = unsafe { segment.uninit() };
            match retry_on_intr(|| pread(file, &mut *bytes, segment.at).map(|(read, _)| read.len())) {
                Ok(0) => {
                    if segment.at.next_multiple_of(PAGE_BYTES) < segment.at + segment.length as u64 {
                        return Err(taken_away("read").at_offset(segment.at));
                    }
                    bytes.fill(std::mem::MaybeUninit::new(0));
                    break;
                }
                Ok(moved) => segment.advance(moved),
                Err(errno) => return Err(failure("reading", segment.at, errno.into())),
            }
        }
    }
    Ok(())
}

/// Writes every segment to the file.
///
/// # Safety
/// Every segment's buffer must be valid for reads of its length, and nobody may write to it meanwhile.
pub(super) unsafe fn write(file: &File, segments: Vec<Segment>) -> Result<()> {
    for mut segment in segments {
        while segment.length > 0 {
            // SAFETY: the caller lets these bytes be read and lets nobody write to them.
            let bytes = unsafe { segment.bytes() };
            match retry_on_intr(|| pwrite(file, bytes, segment.at)) {
                Ok(0) => return Err(failure("writing", segment.at, io::ErrorKind::WriteZero.into())),
                Ok(moved) => segment.advance(moved),
                Err(errno) => return Err(failure("writing", segment.at, errno.into())),
            }
        }
    }
    Ok(())
}

/// The error where a file has become too short while it was `done`.
pub(super) fn taken_away(done: &str) -> Error {
    let message = format!("a page of the guest's memory was taken away while it was {done}");
    Error::new(ErrorKind::Io, message)
}

fn failure(verb: &str, at: u64, cause: io::Error) -> Error {
    let error = Error::os(format!("{verb} a memory file at offset {at} failed"), cause);
    // EBADF is how the kernel says that a file was opened for reading only.
    match error.cause.as_ref().and_then(io::Error::raw_os_error) {
        Some(libc::EBADF) => error.with_kind(ErrorKind::Usage),
        _ => error,
    }
}
