//! A region: part of a block whose bytes are all kept in the same way.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::pagemap::{ZeroPage, populated};
use super::{Memory, Piece, Process, Segment, file, hugetlb, spans, usage};
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

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
    /// Bytes in a page of the memory itself: 4096, or more for hugetlbfs.
    pub page_bytes: u64,
    /// Whether the bytes may be written; if not, whoever uses the memory has mapped it for reading only.
    pub writable: bool,
}

/// Where a region's bytes are.
#[derive(Debug, Clone)]
pub enum Backing {
    /// Private memory without a file.
    Anonymous(ProcessRange),
    /// A private mapping of a file: the pages that the process has touched are its own, all others the file's.
    PrivateFile {
        /// Where the process has mapped it.
        process: ProcessRange,
        /// What it has mapped.
        file: FileRange,
    },
    /// The same for a file on hugetlbfs.
    PrivateHugetlb {
        /// Where the process has mapped it.
        process: ProcessRange,
        /// What it has mapped.
        file: FileRange,
    },
    /// A file or memfd that whoever uses the memory has mapped shared.
    SharedFile {
        /// What is mapped.
        file: FileRange,
        /// Where a process has mapped it, if that is how it is to be written: pages of a tmpfs that are not there yet are then
        /// charged to that process's memory cgroup rather than to ours.
        process: Option<ProcessRange>,
    },
    /// The same for a file on hugetlbfs.
    SharedHugetlb {
        /// What is mapped.
        file: FileRange,
        /// Where a process has mapped it, if one has: its page tables tell which huge pages are in use, the file
        /// does not.
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

/// Which of a region's two ways some of its bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Process,
    File,
}

impl Backing {
    /// The name of the kind of memory that users see.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Anonymous(_) => "anonymous",
            Self::PrivateFile { .. } => "private-file",
            Self::PrivateHugetlb { .. } => "private-hugetlb",
            Self::SharedFile { .. } => "shared-file",
            Self::SharedHugetlb { .. } => "shared-hugetlb",
        }
    }

    /// The process that the bytes are read from, for private memory.
    pub(super) fn process(&self) -> Option<&ProcessRange> {
        match self {
            Self::Anonymous(process)
            | Self::PrivateFile { process, .. }
            | Self::PrivateHugetlb { process, .. } => Some(process),
            Self::SharedFile { .. } | Self::SharedHugetlb { .. } => None,
        }
    }

    /// The file that the bytes, or those that no process holds, are read from.
    #[must_use]
    pub fn file(&self) -> Option<&FileRange> {
        match self {
            Self::Anonymous(_) => None,
            Self::SharedFile { file, .. }
            | Self::PrivateFile { file, .. }
            | Self::PrivateHugetlb { file, .. }
            | Self::SharedHugetlb { file, .. } => Some(file),
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
    /// Checks that all numbers are page-aligned and that no sum of them overflows.
    pub(super) fn validate(&self) -> Result<()> {
        let process = match &self.backing {
            Backing::SharedFile { process, .. } | Backing::SharedHugetlb { process, .. } => process.as_ref(),
            backing => backing.process(),
        };
        let starts = [
            Some(self.offset),
            process.map(|process| process.address),
            self.backing.file().map(|file| file.offset),
        ];
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
            Ok(())
        } else {
            Err(usage(format!("a region of block {} is not page-aligned", self.block)))
        }
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
        Err(usage(format!("block {} is mapped for reading only at offset {}", self.block, self.offset)))
    }

    /// The pages that may hold data, from the start of the region, ascending and disjoint, and how to read them.
    pub(super) fn data_spans(&self, memory: &Memory) -> Result<Vec<(Range<u64>, Way)>> {
        let mut found = Vec::new();
        let held = self.held_spans()?;
        let rest = spans::subtract(&self.file_spans(memory)?, &held);
        found.extend(held.into_iter().map(|span| (span, Way::Process)));
        found.extend(rest.into_iter().map(|span| (span, Way::File)));
        found.sort_by_key(|(span, _)| span.start);
        Ok(found)
    }

    /// The pages that the process holds itself, from the start of the region.
    fn held_spans(&self) -> Result<Vec<Range<u64>>> {
        let Some(ProcessRange { process, address }) = self.backing.process() else {
            return Ok(Vec::new());
        };
        let zero = if self.backing.file().is_some() { ZeroPage::Present } else { ZeroPage::Absent };
        let held = populated(process, *address..address + self.length, zero)?;
        Ok(relative(held, *address))
    }

    /// The pages for which the file holds data, from the start of the region.
    fn file_spans(&self, memory: &Memory) -> Result<Vec<Range<u64>>> {
        let Some(FileRange { file, offset, .. }) = self.backing.file() else {
            return Ok(Vec::new());
        };
        let span = *offset..offset + self.length;
        let data = match self.backing {
            Backing::PrivateHugetlb { .. } => file::hugetlb_spans(file, span),
            Backing::SharedHugetlb { .. } => hugetlb::data_spans(memory, file, span),
            _ => file::data_spans(file, span),
        };
        Ok(relative(data?, *offset))
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
        segments.ok_or_else(|| Error::new(ErrorKind::Usage, "a piece lies outside of its region"))
    }
}

fn relative(spans: Vec<Range<u64>>, base: u64) -> Vec<Range<u64>> {
    spans.into_iter().map(|span| span.start - base..span.end - base).collect()
}
