//! The life of an image that is being written: begun so that nobody takes it for an image, filled, made durable,
//! published.
//!
//! Where it goes, a new file or a block device, decides how it begins, how it is published and how it is given up; all
//! between is the same. All calls go through the I/O engine, so that the simulated engine's faults reach every step.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::device::Device;
use super::new_file::NewFile;
use super::opened::Opened;
use super::{require_direct, set_direct};
use crate::io::Io;
use crate::{Error, Result};

/// An image that is being written. Dropped before it was published, it vanishes.
#[derive(Debug)]
pub struct ImageWriter {
    file: Opened,
    direct: bool,
    life: Mutex<Life>,
}

/// Where an image is written to, and how far that is.
#[derive(Debug)]
struct Life {
    target: Target,
    phase: Phase,
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
    /// Syncing failed once, or the last write to a device. The kernel may have dropped what it could not write, so no later
    /// success can be believed.
    Lost,
    /// It is what a reader finds under the path. Or perhaps is: publishing it failed, and nobody knows whether it worked all
    /// the same, or on a device it could not be undone, so that a reader finds the whole image or what was there without it.
    Published,
    /// Nothing is left of it that a reader could take for an image.
    Discarded,
}

/// An image that was not published, or perhaps was.
#[derive(Debug)]
pub(super) struct Unpublished {
    pub(super) error: Error,
    /// Whether a reader may find it all the same.
    pub(super) perhaps_published: bool,
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
        let (file, target) = match Device::open(&io, path, force)? {
            Some((file, device)) => (file, Target::Device(device)),
            None => {
                let (file, new_file) = NewFile::create(&io, path, force)?;
                (Opened { io, path: path.to_owned(), file }, Target::NewFile(new_file))
            }
        };
        let image = Self { file, direct, life: Mutex::new(Life { target, phase: Phase::Writing }) };
        if direct {
            require_direct(image.fd(), path)?;
        }
        Ok(image)
    }

    /// The open file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.file.as_fd()
    }

    /// The path that it was created with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The engine it was created with.
    #[must_use]
    pub fn io(&self) -> &Arc<dyn Io> {
        &self.file.io
    }

    /// Bytes of the device that it is written to; `None` for a file.
    #[must_use]
    pub fn device_bytes(&self) -> Option<u64> {
        match &self.life().target {
            Target::NewFile(_) => None,
            Target::Device(device) => Some(device.bytes),
        }
    }

    /// Sets the image's length in bytes. On a device, which has a length of its own, the first call makes it unreadable
    /// as what it was and discards what it held.
    ///
    /// # Errors
    /// `Usage` during a transfer or after the end; `NoSpace` if the file system does not take files that long, or the
    /// device is too small.
    pub fn set_length(&self, bytes: u64) -> Result<()> {
        let mut life = self.life_in("set the length of", &[Phase::Writing, Phase::Synced])?;
        life.phase = Phase::Writing;
        match &mut life.target {
            Target::NewFile(_) => {
                let message = format!("setting the image's length to {bytes} bytes failed");
                // ftruncate says EINVAL for a length that no file can have.
                let too_long = |cause| if cause == Errno::INVAL { Errno::FBIG } else { cause };
                self.file.call(&message, |io, file| io.set_length(file, bytes).map_err(too_long))
            }
            Target::Device(device) => device.reserve(&self.file, bytes),
        }
    }

    /// Prepares the file for the engines' requests: turns direct I/O on if it was asked for.
    ///
    /// # Errors
    /// `Usage` out of turn; `HostUnsupported` if the file system refuses direct I/O.
    pub fn begin_transfer(&self) -> Result<()> {
        let mut life = self.life_in("transfer to", &[Phase::Writing, Phase::Synced])?;
        if self.direct {
            set_direct(self.file.io.as_ref(), self.fd(), self.path(), true)?;
        }
        life.phase = Phase::Transferring;
        Ok(())
    }

    /// Ends a transfer: nothing may be in flight any more. Buffered writes are allowed again.
    ///
    /// # Errors
    /// `Usage` out of turn, or the errno of fcntl(2).
    pub fn end_transfer(&self) -> Result<()> {
        let mut life = self.life_in("end a transfer to", &[Phase::Transferring])?;
        if self.direct {
            set_direct(self.file.io.as_ref(), self.fd(), self.path(), false)?;
        }
        life.phase = Phase::Writing;
        Ok(())
    }

    /// Writes each part's bytes at its offset, through the page cache. Only outside of transfers: pages in the cache
    /// slow direct writes down, and the two do not see each other's bytes in time.
    ///
    /// # Errors
    /// `Usage` out of turn; `NoSpace` or `Io` with the offset.
    pub fn write_metadata(&self, parts: &[(u64, &[u8])]) -> Result<()> {
        let mut life = self.life_in("write metadata to", &[Phase::Writing, Phase::Synced])?;
        life.phase = Phase::Writing;
        parts.iter().try_for_each(|&(offset, bytes)| match &mut life.target {
            Target::NewFile(_) => self.file.write_all(offset, bytes),
            Target::Device(device) => device.write(&self.file, offset, bytes),
        })
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// `Usage` out of turn; `NoSpace` or `Io`, after which the image can only be discarded.
    pub fn sync(&self) -> Result<()> {
        let mut life = self.life_in("sync", &[Phase::Writing, Phase::Synced])?;
        life.phase = Phase::Lost;
        self.file.call("syncing the image to disk failed", |io, file| io.sync_data(file))?;
        life.phase = Phase::Synced;
        Ok(())
    }

    /// Makes the image what a reader finds under its path, and that durable.
    ///
    /// # Errors
    /// `Usage` unless everything was synced; `TargetExists` if something got the final name meanwhile and `force` is
    /// not set; or the errno of a call. If only the last step fails, syncing the directory, then the image is whole
    /// and has its final name, but might lose it in a power failure; the message says so.
    pub fn publish(&self) -> Result<()> {
        let mut life = self.life_in("publish", &[Phase::Synced])?;
        let outcome = match &life.target {
            Target::NewFile(new_file) => new_file.rename(self.fd()),
            Target::Device(device) => device.publish(&self.file),
        };
        life.phase = match (&outcome, &life.target) {
            (Err(Unpublished { perhaps_published: false, .. }), Target::NewFile(_)) => Phase::Synced,
            (Err(Unpublished { perhaps_published: false, .. }), Target::Device(_)) => Phase::Lost,
            _ => Phase::Published,
        };
        outcome.map_err(|failure| failure.error)?;
        match &life.target {
            Target::NewFile(new_file) => new_file.sync_directory(),
            Target::Device(_) => Ok(()),
        }
    }

    /// Gives the image up: removes the file and gives its space back, or leaves the device without anything that looks
    /// like an image. Does nothing after it was, or may have been, published, or was discarded, and leaves a partial file
    /// alone that is not ours.
    ///
    /// # Errors
    /// The errno of a call; the partial file is still there then, but empty if that was possible.
    pub fn discard(&self) -> Result<()> {
        let mut life = self.life();
        if matches!(life.phase, Phase::Published | Phase::Discarded) {
            return Ok(());
        }
        match &life.target {
            Target::NewFile(new_file) => new_file.remove(self.fd())?,
            Target::Device(device) => device.give_up(&self.file)?,
        }
        life.phase = Phase::Discarded;
        Ok(())
    }

    /// Whether a reader finds the image under its path, or may find it: so it can be though publishing has failed.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.life().phase == Phase::Published
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image's life, if it is in one of the phases in which `action` is allowed.
    fn life_in(&self, action: &str, allowed: &[Phase]) -> Result<MutexGuard<'_, Life>> {
        let life = self.life();
        if allowed.contains(&life.phase) {
            return Ok(life);
        }
        let message = format!("cannot {action} an image that is in the state {:?}", life.phase);
        Err(Error::usage(message).at_path(self.path()))
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        // There is nobody to tell; a partial file that stays is replaced by the next save.
        let _ = self.discard();
    }
}
