//! An image that becomes a new file: written under another name and locked, and renamed when it is whole and durable.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::device::{require_no_devices, require_unused};
use super::writer::Unpublished;
use super::{kind, refusal};
use crate::io::Io;
use crate::{Error, ErrorKind, Result};

/// What is appended to the name of an image that is being written.
pub const PARTIAL_SUFFIX: &str = ".partial";
/// Longest file name in bytes (NAME_MAX of every file system that takes images).
const NAME_BYTES_MAX: usize = 255;
/// How often another process may snatch the partial file's name from us before we call it busy.
const ATTEMPTS_MAX: u32 = 16;
/// A file's device and inode.
type Identity = (u64, u64);

/// A partial file, the name that it is for, and the directory they are in.
#[derive(Debug)]
pub(super) struct NewFile {
    io: Arc<dyn Io>,
    directory: OwnedFd,
    name: OsString,
    partial: OsString,
    path: PathBuf,
    partial_path: PathBuf,
    /// Whether it may replace what has its name.
    force: bool,
    /// Which file the partial one is, once it is ours.
    identity: Option<Identity>,
}

impl NewFile {
    /// Creates and locks the partial file.
    pub(super) fn create(io: &Arc<dyn Io>, path: &Path, force: bool) -> Result<(OwnedFd, Self)> {
        let mut new_file = Self::of(io, path, force)?;
        new_file.check_final()?;
        require_no_devices(new_file.directory.as_fd(), path)?;
        let (file, identity) = new_file.create_partial()?;
        new_file.identity = Some(identity);
        Ok((file, new_file))
    }

    fn of(io: &Arc<dyn Io>, path: &Path, force: bool) -> Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        // What `file_name` overlooks.
        let names_directory = bytes.ends_with(b"/") || bytes.ends_with(b"/.");
        let name = path
            .file_name()
            .filter(|_| !names_directory)
            .ok_or_else(|| refusal(ErrorKind::Usage, path, "does not name a file"))?;
        let bytes_max = NAME_BYTES_MAX - PARTIAL_SUFFIX.len();
        if name.len() > bytes_max {
            let message =
                format!("the file name is {} bytes long; at most {bytes_max} are possible", name.len());
            return Err(Error::usage(message).at_path(path));
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = retry_on_intr(|| io.open_directory(parent)).map_err(|cause| {
            Error::os(format!("opening the directory {} failed", parent.display()), cause).at_path(parent)
        })?;
        let partial = [name, OsStr::new(PARTIAL_SUFFIX)].into_iter().collect::<OsString>();
        Ok(Self {
            io: Arc::clone(io),
            directory,
            name: name.to_owned(),
            path: path.to_owned(),
            partial_path: path.with_file_name(&partial),
            partial,
            force,
            identity: None,
        })
    }

    /// Refuses a final name that publishing could not take, or that another program has locked.
    fn check_final(&self) -> Result<()> {
        let what = match self.status_of(&self.name)?.map(kind) {
            None => return Ok(()),
            Some(kind) if !matches!(kind, FileType::RegularFile | FileType::Symlink) => {
                "is no regular file, and is not replaced"
            }
            Some(_) if self.force => return require_unused(self.io.as_ref(), &self.path),
            Some(_) => "exists already, and replacing it was not asked for",
        };
        Err(refusal(ErrorKind::TargetExists, &self.path, what))
    }

    /// Creates and locks the partial file, replacing a leftover one.
    ///
    /// Between creating and locking, another process may take the new file for a leftover: it locks it first and
    /// removes it. Hence the file counts as ours only if the name still leads to it once it is locked.
    fn create_partial(&self) -> Result<(OwnedFd, Identity)> {
        for _ in 0..ATTEMPTS_MAX {
            match retry_on_intr(|| self.io.create(self.directory.as_fd(), &self.partial)) {
                Ok(file) => {
                    let ours =
                        self.claim(file.as_fd()).inspect_err(|_| self.remove_unclaimed(file.as_fd()))?;
                    if let Some(identity) = ours {
                        return Ok((file, identity));
                    }
                }
                Err(Errno::EXIST) => self.remove_leftover()?,
                Err(cause) => return Err(self.failed("creating", cause)),
            }
        }
        let message = format!("another process is writing {}", self.partial_path.display());
        Err(Error::new(ErrorKind::TargetBusy, message).at_path(&self.partial_path))
    }

    /// Locks a file that was opened by the partial name; `None` if another process has locked it, or it has lost the name
    /// meanwhile.
    fn claim(&self, file: BorrowedFd<'_>) -> Result<Option<Identity>> {
        match retry_on_intr(|| self.io.lock(file)) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            outcome => outcome.map_err(|cause| self.failed("locking", cause))?,
        }
        let opened = identity(self.call("examining", || self.io.status(file))?);
        Ok(self.identity_of(&self.partial)?.filter(|named| *named == opened))
    }

    /// Removes the file that we have just created but could not lock, unless the name leads to another one by now.
    fn remove_unclaimed(&self, file: BorrowedFd<'_>) {
        let created = self.call("examining", || self.io.status(file)).ok().map(identity);
        if created.is_some() && created == self.identity_of(&self.partial).ok().flatten() {
            // If it stays, it is an unlocked leftover, which the next save replaces.
            let _ = self.remove_partial();
        }
    }

    /// Removes a partial file that nobody is writing.
    fn remove_leftover(&self) -> Result<()> {
        if self.status_of(&self.partial)?.is_some_and(|found| kind(found) != FileType::RegularFile) {
            let what = "is not a regular file; remove it first";
            return Err(refusal(ErrorKind::TargetExists, &self.partial_path, what));
        }
        let file = match retry_on_intr(|| self.io.open_existing(self.directory.as_fd(), &self.partial)) {
            Err(Errno::NOENT) => return Ok(()),
            outcome => outcome.map_err(|cause| self.failed("opening", cause))?,
        };
        if self.claim(file.as_fd())?.is_some() { self.remove_partial() } else { Ok(()) }
    }

    fn remove_partial(&self) -> Result<()> {
        self.call("removing", || self.io.unlink(self.directory.as_fd(), &self.partial))
    }

    /// Gives the file its final name.
    pub(super) fn rename(&self, file: BorrowedFd<'_>) -> Result<(), Unpublished> {
        self.require_partial()?;
        let (directory, partial, name) = (self.directory.as_fd(), &self.partial, &self.name);
        let renamed = retry_on_intr(|| match self.force {
            true => self.io.rename_over(directory, partial, name),
            false => self.io.rename_new(directory, partial, name),
        });
        match renamed {
            // Network and FUSE file systems that do not know RENAME_NOREPLACE: a second name is never put over
            // another file either.
            Err(Errno::INVAL | Errno::NOSYS) if !self.force => {
                retry_on_intr(|| self.io.link(directory, partial, name))
                    .map_err(|cause| self.unnamed(file, cause, self.not_linked(cause)))?;
                // Should the old name stay, it leads to the same whole file, and the next save there replaces it.
                let _ = self.remove_partial();
                Ok(())
            }
            outcome => outcome.map_err(|cause| self.unnamed(file, cause, self.not_renamed(cause))),
        }
    }

    /// Refuses to rename what is not the file any more. It may have its final name then, from somebody else.
    fn require_partial(&self) -> Result<(), Unpublished> {
        let found = self.identity_of(&self.partial);
        let found = found.map_err(|error| Unpublished { error, perhaps_published: false })?;
        if found == self.identity {
            return Ok(());
        }
        let what = "was replaced, removed or renamed by somebody else";
        let error = refusal(ErrorKind::Io, &self.partial_path, what);
        let perhaps_published = self.identity_of(&self.name).map_or(true, |found| found == self.identity);
        Err(Unpublished { error, perhaps_published })
    }

    /// `error`, with whether renaming or linking may have worked though it failed with `cause`: all but what says for certain
    /// that nothing was done may come from a file system that has lost the answer, and so may EEXIST and ENOENT, from a
    /// request that was sent again after it had worked. What has which name is not asked unless it must be: caches of a
    /// network's file system answer that, and a second name may have another inode.
    fn unnamed(&self, file: BorrowedFd<'_>, cause: Errno, mut error: Error) -> Unpublished {
        let perhaps_published = match cause {
            Errno::EXIST => match self.status_of(&self.name) {
                // By its length where a second name has another inode: two copies are worse than a guest that waits.
                Ok(Some(found)) => {
                    let has_our_length = |ours: Stat| ours.st_size == found.st_size;
                    Some(identity(found)) == self.identity || self.io.status(file).is_ok_and(has_our_length)
                }
                _ => true,
            },
            Errno::NOENT => !self.io.status(file).is_ok_and(|status| status.st_nlink == 0),
            // Not allowed, or no room.
            Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOSPC | Errno::DQUOT | Errno::MLINK => false,
            // Something else is there, or in use.
            Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY | Errno::BUSY | Errno::TXTBSY => false,
            // Not with such a name.
            Errno::NAMETOOLONG | Errno::LOOP => false,
            // Not on such a file system.
            Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::XDEV => false,
            _ => true,
        };
        if perhaps_published {
            error.message += &format!("; it may still be {}", self.partial_path.display());
        }
        Unpublished { error, perhaps_published }
    }

    fn not_renamed(&self, cause: Errno) -> Error {
        let error = Error::os("renaming the finished image failed", cause).at_path(&self.path);
        // The only thing that a file cannot replace.
        if cause == Errno::ISDIR { error.with_kind(ErrorKind::TargetExists) } else { error }
    }

    fn not_linked(&self, cause: Errno) -> Error {
        // What link(2) says on file systems without hard links; the kernel's protection of links is only for
        // other people's files.
        if !matches!(cause, Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) {
            return self.not_renamed(cause);
        }
        let message = "this file system can neither rename a file without replacing another one nor make hard \
                       links, so that an image there can only be one that may be replaced";
        Error::os(message, cause).with_kind(ErrorKind::HostUnsupported).at_path(&self.path)
    }

    /// Makes the final name durable.
    pub(super) fn sync_directory(&self) -> Result<()> {
        let message =
            "syncing the directory of the finished image failed: its name might be lost in a power failure";
        match retry_on_intr(|| self.io.sync_directory(self.directory.as_fd())) {
            // A file system that cannot sync directories; there is no other way to ask it.
            Err(Errno::INVAL) => Ok(()),
            outcome => outcome.map_err(|cause| Error::os(message, cause).at_path(&self.path)),
        }
    }

    /// Removes the partial file, unless the name leads to another one by now, and empties it.
    pub(super) fn remove(&self, file: BorrowedFd<'_>) -> Result<()> {
        if self.identity_of(&self.partial)? != self.identity {
            return Ok(());
        }
        let outcome = self.remove_partial();
        // The file stays open, and its space in use, for as long as its owner keeps it, or for ever where nothing can be
        // removed. Not if it has another name: somebody gave it that.
        if outcome.is_err() || self.io.status(file).is_ok_and(|status| status.st_nlink == 0) {
            let _ = retry_on_intr(|| self.io.set_length(file, 0));
        }
        outcome
    }

    /// Which file has the name `name`, if any.
    fn identity_of(&self, name: &OsStr) -> Result<Option<Identity>> {
        Ok(self.status_of(name)?.map(identity))
    }

    /// The status of what has the name `name`, if anything has.
    fn status_of(&self, name: &OsStr) -> Result<Option<Stat>> {
        self.call("examining", || match self.io.status_at(self.directory.as_fd(), name) {
            Err(Errno::NOENT) => Ok(None),
            found => found.map(Some),
        })
    }

    /// Makes a call that concerns the partial file, again after a signal.
    fn call<T>(&self, action: &str, call: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
        retry_on_intr(call).map_err(|cause| self.failed(action, cause))
    }

    fn failed(&self, action: &str, cause: Errno) -> Error {
        Error::os(format!("{action} {} failed", self.partial_path.display()), cause)
            .at_path(&self.partial_path)
    }
}

fn identity(status: Stat) -> Identity {
    (status.st_dev, status.st_ino)
}
