//! The life of an image that is being written: begun so that nobody takes it for an image, filled, made durable,
//! published.
//!
//! Where it goes, a new file or a block device, decides how it begins, how it is published and how it is given up; all
//! between is the same. All calls go through the I/O engine, so that the simulated engine's faults reach every step.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, retry_on_intr};

use super::device::{Device, require_unlocked};
use super::new_file::NewFile;
use super::{no_direct, require_direct};
use crate::io::Io;
use crate::{Error, ErrorKind, Result};

/// An image that is being written. Dropped before it was published, it vanishes.
#[derive(Debug)]
pub struct ImageWriter {
    io: Arc<dyn Io>,
    path: PathBuf,
    file: OwnedFd,
    target: Target,
    direct: bool,
    phase: Mutex<Phase>,
}

/// Where an image is written to.
#[derive(Debug)]
enum Target {
    /// A file that gets its name when it is whole.
    NewFile(NewFile),
    /// A block device, whose first bytes are written when all others are there.
    Device(Device),
}

/// Where an image is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Lengths and metadata may be written.
    Writing,
    /// The engines' requests run on the file.
    Transferring,
    /// Everything written is durable.
    Synced,
    /// Syncing failed once. The kernel may have dropped what it could not write, so no later success can be believed.
    Lost,
    /// It is what a reader finds under the path.
    Published,
    /// Publishing it failed, and nobody knows whether it worked all the same, or on a device it could not be undone: a
    /// reader finds the whole image or what was there without it.
    PerhapsPublished,
    /// Nothing is left of it that a reader could take for an image.
    Discarded,
}

impl ImageWriter {
    /// Begins an image at `path`. If that leads to a block device, the device is opened for us alone, and what it holds
    /// is left alone until the image's length is set. Otherwise a locked `path.partial` is created that only its owner
    /// can read; a leftover partial file that nobody locks is replaced, and with `force` publishing will replace what has
    /// the name `path`. With `direct`, transfers will use direct I/O.
    ///
    /// # Errors
    /// `TargetExists` if `path` exists, or the device holds an image, and `force` is not set, or if it cannot be
    /// replaced; `TargetBusy` if another process is writing it or has locked what it replaces, or the device is in use;
    /// `HostUnsupported` if `direct` is set and there is no direct I/O on pages; `Usage` for a path that names no file, or
    /// one among the devices that is none; or the errno of a call. Nothing is left behind.
    pub fn create(io: Arc<dyn Io>, path: &Path, force: bool, direct: bool) -> Result<Self> {
        let (file, target) = match Device::open(io.as_ref(), path, force)? {
            Some((file, device)) => (file, Target::Device(device)),
            None => {
                if force {
                    require_unlocked(io.as_ref(), path)?;
                }
                let (file, new_file) = NewFile::create(io.as_ref(), path, force)?;
                (file, Target::NewFile(new_file))
            }
        };
        let phase = Mutex::new(Phase::Writing);
        let image = Self { io, path: path.to_owned(), file, target, direct, phase };
        if direct {
            require_direct(image.fd()).map_err(|error| image.at_path(error))?;
        }
        Ok(image)
    }

    /// The open file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The path that it was created with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The engine it was created with.
    #[must_use]
    pub fn io(&self) -> &Arc<dyn Io> {
        &self.io
    }

    /// Bytes of the device that it is written to; `None` for a file.
    #[must_use]
    pub fn device_bytes(&self) -> Option<u64> {
        match &self.target {
            Target::NewFile(_) => None,
            Target::Device(device) => Some(device.bytes()),
        }
    }

    /// Sets the image's length in bytes. On a device, which has a length of its own, the first call makes it unreadable
    /// as what it was and discards what it held.
    ///
    /// # Errors
    /// `Usage` during a transfer or after the end; `NoSpace` if the file system does not take files that long, or the
    /// device is too small.
    pub fn set_length(&self, bytes: u64) -> Result<()> {
        let mut phase = self.phase_of("set the length of", &[Phase::Writing, Phase::Synced])?;
        *phase = Phase::Writing;
        match &self.target {
            Target::NewFile(_) => {
                let message = format!("setting the image's length to {bytes} bytes failed");
                self.call(&message, || self.io.set_length(self.fd(), bytes)).map_err(too_long)
            }
            Target::Device(device) => {
                device.reserve(self.io.as_ref(), self.fd(), bytes).map_err(|error| self.at_path(error))
            }
        }
    }

    /// Prepares the file for the engines' requests: turns direct I/O on if it was asked for.
    ///
    /// # Errors
    /// `Usage` out of turn; `HostUnsupported` if the file system refuses direct I/O.
    pub fn begin_transfer(&self) -> Result<()> {
        let mut phase = self.phase_of("transfer to", &[Phase::Writing, Phase::Synced])?;
        if self.direct {
            self.set_direct(true)?;
        }
        *phase = Phase::Transferring;
        Ok(())
    }

    /// Ends a transfer: nothing may be in flight any more. Buffered writes are allowed again.
    ///
    /// # Errors
    /// `Usage` out of turn, or the errno of fcntl(2).
    pub fn end_transfer(&self) -> Result<()> {
        let mut phase = self.phase_of("end a transfer to", &[Phase::Transferring])?;
        if self.direct {
            self.set_direct(false)?;
        }
        *phase = Phase::Writing;
        Ok(())
    }

    /// Writes each part's bytes at its offset, through the page cache. Only outside of transfers: pages in the cache
    /// slow direct writes down, and the two do not see each other's bytes in time.
    ///
    /// # Errors
    /// `Usage` out of turn; `NoSpace` or `Io` with the offset.
    pub fn write_metadata(&self, parts: &[(u64, &[u8])]) -> Result<()> {
        let mut phase = self.phase_of("write metadata to", &[Phase::Writing, Phase::Synced])?;
        *phase = Phase::Writing;
        parts.iter().try_for_each(|&(offset, bytes)| {
            let (offset, bytes) = match &self.target {
                Target::NewFile(_) => (offset, bytes),
                Target::Device(device) => device.withhold_magic(offset, bytes),
            };
            write_all(self.io.as_ref(), self.fd(), offset, bytes).map_err(|error| self.at_path(error))
        })
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// `Usage` out of turn; `NoSpace` or `Io`, after which the image can only be discarded.
    pub fn sync(&self) -> Result<()> {
        let mut phase = self.phase_of("sync", &[Phase::Writing, Phase::Synced])?;
        *phase = Phase::Lost;
        self.call("syncing the image to disk failed", || self.io.sync_data(self.fd()))?;
        *phase = Phase::Synced;
        Ok(())
    }

    /// Makes the image what a reader finds under its path, and that durable.
    ///
    /// # Errors
    /// `Usage` unless everything was synced; `TargetExists` if something got the final name meanwhile and `force` is
    /// not set; or the errno of a call. If only the last step fails, syncing the directory, then the image is whole
    /// and has its final name, but might lose it in a power failure; the message says so.
    pub fn publish(&self) -> Result<()> {
        let mut phase = self.phase_of("publish", &[Phase::Synced])?;
        match &self.target {
            Target::NewFile(file) => {
                let outcome = file.rename(self.io.as_ref(), self.fd());
                *phase = match &outcome {
                    Ok(()) => Phase::Published,
                    Err(unnamed) if unnamed.perhaps_named => Phase::PerhapsPublished,
                    Err(_) => *phase,
                };
                outcome.map_err(|unnamed| unnamed.error)?;
                file.sync_directory(self.io.as_ref())
            }
            Target::Device(device) => {
                let outcome = device.write_magic(self.io.as_ref(), self.fd());
                *phase = match &outcome {
                    Ok(()) => Phase::Published,
                    // The magic may be there or not, and has to go before anybody is told that there is no image.
                    Err(_) if Device::erase_magic(self.io.as_ref(), self.fd()).is_ok() => Phase::Lost,
                    Err(_) => Phase::PerhapsPublished,
                };
                outcome.map_err(|error| self.at_path(self.unfinished(error, *phase)))
            }
        }
    }

    /// `error` of publishing on a device, with what that leaves there.
    fn unfinished(&self, mut error: Error, phase: Phase) -> Error {
        if phase == Phase::PerhapsPublished {
            let path = self.path.display();
            error.message +=
                &format!("; {path} may hold the whole image, for its first bytes could not be erased again");
        }
        error
    }

    /// Gives the image up: removes the file and gives its space back, or leaves the device without anything that looks
    /// like an image. Does nothing after it was, or may have been, published, or was discarded, and leaves a partial file
    /// alone that is not ours.
    ///
    /// # Errors
    /// The errno of a call; the partial file is still there then, but empty if that was possible.
    pub fn discard(&self) -> Result<()> {
        let mut phase = self.phase();
        if matches!(*phase, Phase::Published | Phase::PerhapsPublished | Phase::Discarded) {
            return Ok(());
        }
        match &self.target {
            Target::NewFile(file) => file.remove(self.io.as_ref(), self.fd())?,
            Target::Device(device) => {
                device.give_up(self.io.as_ref(), self.fd()).map_err(|error| self.at_path(error))?;
            }
        }
        *phase = Phase::Discarded;
        Ok(())
    }

    /// Whether a reader finds the image under its path, or may find it: so it can be though publishing has failed.
    #[must_use]
    pub fn is_published(&self) -> bool {
        matches!(*self.phase(), Phase::Published | Phase::PerhapsPublished)
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The phase, if it is one of those in which `action` is allowed.
    fn phase_of(&self, action: &str, allowed: &[Phase]) -> Result<MutexGuard<'_, Phase>> {
        let phase = self.phase();
        if allowed.contains(&phase) {
            return Ok(phase);
        }
        let message = format!("cannot {action} an image that is in the state {:?}", *phase);
        Err(Error::new(ErrorKind::Usage, message).at_path(&self.path))
    }

    fn call<T>(&self, message: &str, call: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
        retry_on_intr(call).map_err(|cause| self.at_path(Error::os(message, cause)))
    }

    fn at_path(&self, error: Error) -> Error {
        if error.path.is_some() { error } else { error.at_path(&self.path) }
    }

    fn set_direct(&self, direct: bool) -> Result<()> {
        let refused = |cause| match cause {
            Errno::INVAL => self.at_path(no_direct()),
            _ => Error::os("switching direct I/O on or off failed", cause).at_path(&self.path),
        };
        retry_on_intr(|| self.io.set_direct(self.fd(), direct)).map_err(refused)
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        // There is nobody to tell; a partial file that stays is replaced by the next save.
        let _ = self.discard();
    }
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// `NoSpace` or `Io` with the offset of what could not be written.
pub(super) fn write_all(io: &dyn Io, file: BorrowedFd<'_>, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let written = retry_on_intr(|| match io.write_at(file, bytes, offset)? {
            // No file system is known to take nothing without saying why.
            0 => Err(Errno::IO),
            written => Ok(written.min(bytes.len())),
        });
        let message = || format!("writing the image's metadata at offset {offset} failed");
        let written = written.map_err(|cause| Error::os(message(), cause).at_offset(offset))?;
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

/// ftruncate says EINVAL for a length that no file can have.
fn too_long(error: Error) -> Error {
    match error.cause.as_ref().and_then(io::Error::raw_os_error) {
        Some(libc::EINVAL) => error.with_kind(ErrorKind::NoSpace),
        _ => error,
    }
}
