//! An image that is read: its file, where its pages are, and which of them it holds.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::{PageAreas, reopen};
use crate::bitmap::PageBitmap;
use crate::{Error, PAGE_BYTES, Result};

/// An image whose structure was checked, open for the reading of its pages.
#[derive(Debug)]
pub struct ImageReader {
    file: File,
    /// What errors call the file.
    pub(crate) path: PathBuf,
    /// Where each block's pages are.
    pub(crate) areas: PageAreas,
    /// Which pages the image holds, for each block.
    pub(crate) bitmaps: Vec<PageBitmap>,
}

impl ImageReader {
    /// Opens the checked `file` once more, for direct I/O if `direct`, so that it is the same file whatever stands under
    /// its name by now. `path` is what errors call it.
    ///
    /// # Errors
    /// `Usage` for bitmaps that are not those of the areas; `HostUnsupported` if the file system has no direct I/O on
    /// pages; or the errno of open(2).
    pub fn open(
        file: BorrowedFd<'_>,
        path: &Path,
        direct: bool,
        areas: PageAreas,
        bitmaps: Vec<PageBitmap>,
    ) -> Result<Self> {
        let pages = areas.areas().iter().map(|area| area.length / PAGE_BYTES);
        if !bitmaps.iter().map(PageBitmap::pages).eq(pages) {
            return Err(Error::usage("the page bitmaps are not those of the RAM blocks"));
        }
        Ok(Self { file: reopen(file, path, direct)?, path: path.to_owned(), areas, bitmaps })
    }

    /// The open file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
