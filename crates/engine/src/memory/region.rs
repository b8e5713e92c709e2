//! A region: part of a block whose bytes are all kept in the same way.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::pagemap::{ZeroPage, populated};
use super::{Extent, Memory, Piece, Process, Segment, file, hugetlb, spans};
use crate::{Error, PAGE_BYTES, Result};

/// Part of a block whose bytes are all kept in the same way.
#[derive(Debug, Clone)]
pub struct Region {
    /// Index of the block.
    pub block: usize,
    /// First byte, from the start of the block; page-aligned.
    pub offset: u64,
    /// Bytes; page-aligned, not 0.
    pub length: u64,
    /// Where the bytes are.
    pub backing: Backing,
    /// Bytes in a page of the memory itself: 4096, or more if the file is on hugetlbfs.
    pub page_bytes: u64,
    /// Whether the bytes may be written; if not, whoever uses the memory has mapped it for reading only.
    pub writable: bool,
}

/// Where a region's bytes are.
#[derive(Debug, Clone)]
pub enum Backing {
    /// Memory of a process's own: the pages that it has touched. All others are those of the file that it has mapped, or zero.
    Private {
        /// Where the process has mapped it.
        process: ProcessRange,
        /// What it has mapped, if that is a file.
        file: Option<FileRange>,
    },
    /// A file or memfd that whoever uses the memory has mapped shared.
    Shared {
        /// What is mapped.
        file: FileRange,
        /// Where a process has mapped it, if that matters: huge pages that are in use are told by its page tables, not by the
        /// file; all other memory is then written by it, as pages of a tmpfs that are not there yet are charged to that
        /// process's memory cgroup rather than to ours.
        process: Option<ProcessRange>,
    },
}

/// The start of a range of a process's address space.
#[derive(Debug, Clone)]
pub struct ProcessRange {
    /// Whose.
    pub process: Arc<Process>,
    /// First address; page-aligned.
    pub address: u64,
}

/// The start of a range of a file.
#[derive(Debug, Clone)]
pub struct FileRange {
    /// The file, opened for writing if the memory is to be written. Its position may be moved.
    pub file: Arc<File>,
    /// Its path, for messages.
    pub path: Option<Arc<Path>>,
    /// First byte; page-aligned.
    pub offset: u64,
}

/// A region's two ways to its bytes, each with a number, whether it has both or not.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way<'a> {
    Process(&'a ProcessRange),
    File(&'a FileRange),
}

pub(super) const WAYS: u32 = 2;
pub(super) const BY_PROCESS: u32 = 0;
pub(super) const BY_FILE: u32 = 1;

impl Backing {
    /// The file that the bytes, or those that no process holds, are read from.
    #[must_use]
    pub fn file(&self) -> Option<&FileRange> {
        match self {
            Self::Private { file, .. } => file.as_ref(),
            Self::Shared { file, .. } => Some(file),
        }
    }
}

impl FileRange {
    /// The error, naming the file.
    pub(crate) fn name(&self, error: Error) -> Error {
        match &self.path {
            Some(path) => error.at_path(path.as_ref()),
            None => error,
        }
    }
}

impl Region {
    /// The name of the kind of memory that users see.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (&self.backing, self.is_hugetlb()) {
            (Backing::Private { file: None, .. }, _) => "anonymous",
            (Backing::Private { .. }, false) => "private-file",
            (Backing::Private { .. }, true) => "private-hugetlb",
            (Backing::Shared { .. }, false) => "shared-file",
            (Backing::Shared { .. }, true) => "shared-hugetlb",
        }
    }

    /// The first byte behind it, from the start of the block.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length
    }

    pub(super) fn is_hugetlb(&self) -> bool {
        self.page_bytes > PAGE_BYTES
    }

    /// Checks that all numbers are page-aligned and that no sum of them overflows.
    pub(super) fn validate(&self) -> Result<()> {
        let (process, file) = match &self.backing {
            Backing::Private { process, file } => (Some(process), file.as_ref()),
            Backing::Shared { file, process } => (process.as_ref(), Some(file)),
        };
        let starts =
            [Some(self.offset), process.map(|process| process.address), file.map(|file| file.offset)];
        let fits = |start: u64| {
            start.is_multiple_of(PAGE_BYTES)
                && start.checked_add(self.length).is_some_and(|end| end <= i64::MAX.cast_unsigned())
        };
        let valid = self.length > 0
            && self.length.is_multiple_of(PAGE_BYTES)
            && self.page_bytes.is_power_of_two()
            && self.page_bytes >= PAGE_BYTES
            && starts.into_iter().flatten().all(fits);
        if valid {
            return Ok(());
        }
        Err(Error::usage(format!("a region of block {} is not page-aligned", self.block)))
    }

    /// How much of its file the region has within reach, from the start of the file.
    pub(super) fn file_length(&self) -> Result<u64> {
        let Some(FileRange { file, offset, .. }) = self.backing.file() else { return Ok(0) };
        Ok(file::length(file)?.min(offset + self.length))
    }

    /// Refuses a region that is mapped for reading only.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::usage(format!(
            "block {} is mapped for reading only at offset {}",
            self.block, self.offset
        )))
    }

    /// The runs of pages that may hold data, ascending and disjoint; the two ways to them are numbered from `first_source` on.
    pub(super) fn extents(&self, memory: &Memory, first_source: u32) -> Result<Vec<Extent>> {
        let held = self.held_spans()?;
        let rest = spans::subtract(&self.file_spans(memory)?, &held);
        let held = held.into_iter().map(|span| (span, BY_PROCESS));
        let rest = rest.into_iter().map(|span| (span, BY_FILE));
        let extent = |(span, way): (Range<u64>, u32)| Extent {
            offset: self.offset + span.start,
            length: span.end - span.start,
            source: first_source + way,
        };
        let mut extents: Vec<_> = held.chain(rest).map(extent).collect();
        extents.sort_by_key(|extent| extent.offset);
        Ok(extents)
    }

    /// The pages that the process holds itself, from the start of the region.
    fn held_spans(&self) -> Result<Vec<Range<u64>>> {
        let Backing::Private { process, file } = &self.backing else { return Ok(Vec::new()) };
        let zero = if file.is_some() { ZeroPage::Present } else { ZeroPage::Absent };
        populated(process, self.length, zero)
    }

    /// The pages for which the file holds data, from the start of the region.
    fn file_spans(&self, memory: &Memory) -> Result<Vec<Range<u64>>> {
        let Some(FileRange { file, offset, .. }) = self.backing.file() else { return Ok(Vec::new()) };
        let span = *offset..offset + self.length;
        let data = if self.is_hugetlb() {
            hugetlb::data_spans(memory, file, span)?
        } else {
            file::data_spans(file, span)?
        };
        Ok(spans::from(*offset, data))
    }

    /// What to copy for each of `pieces` of the block, where the region's first byte is `base`.
    pub(super) fn segments(&self, base: u64, pieces: &[Piece], buffer: *mut u8) -> Result<Vec<Segment>> {
        let segment = |piece: &Piece| {
            let offset = piece.offset.checked_sub(self.offset)?;
            let end = offset.checked_add(piece.length as u64)?;
            let buffer = buffer.wrapping_add(piece.buffer_offset);
            (end <= self.length).then_some(Segment { at: base + offset, buffer, length: piece.length })
        };
        let segments: Option<Vec<_>> = pieces.iter().map(segment).collect();
        segments.ok_or_else(|| Error::usage("a piece lies outside of its region".to_owned()))
    }
}
