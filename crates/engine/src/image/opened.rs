//! The open file or device of an image that is being written.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::{Errno, retry_on_intr};

use crate::io::Io;
use crate::{Error, Result};

/// An open file or device, and the engine that it is used by.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) io: Arc<dyn Io>,
    /// What errors call it.
    pub(super) path: PathBuf,
    pub(super) file: OwnedFd,
}

impl Opened {
    /// Makes a call, again after a signal; an error says `message`.
    pub(super) fn call<T>(
        &self,
        message: &str,
        mut call: impl FnMut(&dyn Io, BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        retry_on_intr(|| call(self.io.as_ref(), self.file.as_fd()))
            .map_err(|cause| Error::os(message, cause).at_path(&self.path))
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// `NoSpace` or `Io` with the offset of what could not be written.
    pub(super) fn write_all(&self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let message = format!("writing the image's metadata at offset {offset} failed");
            let written = self.call(&message, |io, file| match io.write_at(file, bytes, offset)? {
                // No file system is known to take nothing without saying why.
                0 => Err(Errno::IO),
                written => Ok(written.min(bytes.len())),
            });
            let written = written.map_err(|error| error.at_offset(offset))?;
            bytes = &bytes[written..];
            offset += written as u64;
        }
        Ok(())
    }
}
