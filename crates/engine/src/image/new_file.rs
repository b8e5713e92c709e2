//! An image that becomes a new file: written under another name and locked, and renamed when it is whole and durable.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::{Errno, retry_on_intr};

use super::device::require_no_devices;
use crate::io::{Io, Status};
use crate::{Error, ErrorKind, Result};

/// What is appended to the name of an image that is being written.
pub const PARTIAL_SUFFIX: &str = ".partial";
/// Longest file name in bytes (NAME_MAX of every file system that takes images).
const NAME_BYTES_MAX: usize = 255;
/// How often another process may snatch the partial file's name from us before we call it busy.
const ATTEMPTS_MAX: u32 = 16;
/// What renaming and linking say when they have certainly done nothing. All else may come from a file system that has lost
/// the answer, and so may EEXIST and ENOENT, from a request that was sent again after it had worked.
const REFUSALS: [Errno; 17] = [
    Errno::ACCESS,
    Errno::PERM,
    Errno::ROFS,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::ISDIR,
    Errno::NOTDIR,
    Errno::NOTEMPTY,
    Errno::INVAL,
    Errno::NOSYS,
    Errno::OPNOTSUPP,
    Errno::XDEV,
    Errno::NAMETOOLONG,
    Errno::LOOP,
    Errno::MLINK,
    Errno::BUSY,
    Errno::TXTBSY,
];

/// A partial file that is ours.
#[derive(Debug)]
pub(super) struct NewFile {
    place: Place,
    identity: (u64, u64),
    force: bool,
}

/// The names of an image and the directory they are in.
#[derive(Debug)]
struct Place {
    directory: OwnedFd,
    name: OsString,
    partial: OsString,
    path: PathBuf,
    partial_path: PathBuf,
}

/// A file that did not get its final name, or perhaps did.
#[derive(Debug)]
pub(super) struct Unnamed {
    pub(super) error: Error,
    /// Whether it may have that name all the same.
    pub(super) perhaps_named: bool,
}

/// What became of an attempt to lock the file that has the partial name.
enum Claim {
    /// It is locked by us and has the name: device and inode.
    Ours((u64, u64)),
    /// Another process holds its lock.
    Locked,
    /// It has lost the name meanwhile.
    Moved,
}

impl NewFile {
    /// Creates and locks the partial file.
    pub(super) fn create(io: &dyn Io, path: &Path, force: bool) -> Result<(OwnedFd, Self)> {
        let place = Place::of(io, path)?;
        place.check_final(io, force)?;
        require_no_devices(place.directory.as_fd(), path)?;
        let (file, identity) = place.create_partial(io)?;
        Ok((file, Self { place, identity, force }))
    }

    /// Gives the file its final name.
    pub(super) fn rename(&self, io: &dyn Io, file: BorrowedFd<'_>) -> Result<(), Unnamed> {
        self.require_partial(io)?;
        let (partial, name) = (&self.place.partial, &self.place.name);
        if self.force {
            return retry_on_intr(|| io.rename_over(self.directory(), partial, name))
                .map_err(|cause| self.unnamed(io, file, cause, self.not_renamed(cause)));
        }
        match retry_on_intr(|| io.rename_new(self.directory(), partial, name)) {
            // Network and FUSE file systems that do not know RENAME_NOREPLACE: a second name is never put over
            // another file either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                retry_on_intr(|| io.link(self.directory(), partial, name))
                    .map_err(|cause| self.unnamed(io, file, cause, self.not_linked(cause)))?;
                // Should the old name stay, it leads to the same whole file, and the next save there replaces it.
                let _ = retry_on_intr(|| io.unlink(self.directory(), partial));
                Ok(())
            }
            outcome => outcome.map_err(|cause| self.unnamed(io, file, cause, self.not_renamed(cause))),
        }
    }

    /// Refuses to rename what is not the file any more. It may have its final name then, from somebody else.
    fn require_partial(&self, io: &dyn Io) -> Result<(), Unnamed> {
        let found = self.identity_of(io, &self.place.partial);
        let found = found.map_err(|error| Unnamed { error, perhaps_named: false })?;
        if found == Some(self.identity) {
            return Ok(());
        }
        let partial_path = &self.place.partial_path;
        let message = format!("{} was replaced, removed or renamed by somebody else", partial_path.display());
        let error = Error::new(ErrorKind::Io, message).at_path(partial_path);
        let has_name = |found| found == Some(self.identity);
        let perhaps_named = self.identity_of(io, &self.place.name).map_or(true, has_name);
        Err(Unnamed { error, perhaps_named })
    }

    /// `error`, with whether renaming or linking may have worked though it failed with `cause`. What has which name is not
    /// asked unless it must be: caches of a network's file system answer that, and a second name may have another inode.
    fn unnamed(&self, io: &dyn Io, file: BorrowedFd<'_>, cause: Errno, mut error: Error) -> Unnamed {
        let perhaps_named = match cause {
            Errno::EXIST => match self.identity_of(io, &self.place.name) {
                Ok(Some(found)) => found == self.identity,
                _ => true,
            },
            Errno::NOENT => !io.status(file).is_ok_and(|status| status.is_unlinked),
            _ => !REFUSALS.contains(&cause),
        };
        if perhaps_named {
            error.message += &format!("; it may still be {}", self.place.partial_path.display());
        }
        Unnamed { error, perhaps_named }
    }

    /// Makes the final name durable.
    pub(super) fn sync_directory(&self, io: &dyn Io) -> Result<()> {
        match retry_on_intr(|| io.sync_directory(self.directory())) {
            // A file system that cannot sync directories; there is no other way to ask it.
            Err(Errno::INVAL) => Ok(()),
            outcome => outcome.map_err(|cause| {
                let message = "syncing the directory of the finished image failed: its name might be lost in a \
                               power failure";
                Error::os(message, cause).at_path(&self.place.path)
            }),
        }
    }

    /// Removes the partial file, unless the name leads to another one by now, and empties it.
    pub(super) fn remove(&self, io: &dyn Io, file: BorrowedFd<'_>) -> Result<()> {
        if self.identity_of(io, &self.place.partial)? != Some(self.identity) {
            return Ok(());
        }
        let outcome = retry_on_intr(|| io.unlink(self.directory(), &self.place.partial));
        // The file stays open, and its space in use, for as long as its owner keeps it, or for ever where nothing can be
        // removed. Not if it has another name: somebody gave it that.
        if outcome.is_err() || io.status(file).is_ok_and(|status| status.is_unlinked) {
            let _ = retry_on_intr(|| io.set_length(file, 0));
        }
        outcome.map_err(|cause| self.place.failed("removing", cause))
    }

    fn directory(&self) -> BorrowedFd<'_> {
        self.place.directory.as_fd()
    }

    /// Which file has that name now.
    fn identity_of(&self, io: &dyn Io, name: &OsStr) -> Result<Option<(u64, u64)>> {
        Ok(self.place.status_of(io, name)?.map(identity))
    }

    fn not_renamed(&self, cause: Errno) -> Error {
        let error = Error::os("renaming the finished image failed", cause).at_path(&self.place.path);
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
        Error::os(message, cause).with_kind(ErrorKind::HostUnsupported).at_path(&self.place.path)
    }
}

impl Place {
    fn of(io: &dyn Io, path: &Path) -> Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        // What `file_name` overlooks.
        let names_directory = bytes.ends_with(b"/") || bytes.ends_with(b"/.");
        let name = path.file_name().filter(|_| !names_directory).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{} does not name a file", path.display())).at_path(path)
        })?;
        if name.len() + PARTIAL_SUFFIX.len() > NAME_BYTES_MAX {
            let message = format!(
                "the file name is {} bytes long; at most {} are possible",
                name.len(),
                NAME_BYTES_MAX - PARTIAL_SUFFIX.len()
            );
            return Err(Error::new(ErrorKind::Usage, message).at_path(path));
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = retry_on_intr(|| io.open_directory(parent)).map_err(|cause| {
            Error::os(format!("opening the directory {} failed", parent.display()), cause).at_path(parent)
        })?;
        let with_suffix = |name: &OsStr| {
            let mut name = name.to_owned();
            name.push(PARTIAL_SUFFIX);
            name
        };
        Ok(Self {
            directory,
            name: name.to_owned(),
            partial: with_suffix(name),
            path: path.to_owned(),
            partial_path: with_suffix(path.as_os_str()).into(),
        })
    }

    /// Refuses a final name that publishing could not take.
    fn check_final(&self, io: &dyn Io, force: bool) -> Result<()> {
        let message = match self.status_of(io, &self.name)? {
            None => return Ok(()),
            Some(status) if !matches!(status.kind, FileType::RegularFile | FileType::Symlink) => {
                "is no regular file, and is not replaced"
            }
            Some(_) if force => return Ok(()),
            Some(_) => "exists already, and replacing it was not asked for",
        };
        let message = format!("{} {message}", self.path.display());
        Err(Error::new(ErrorKind::TargetExists, message).at_path(&self.path))
    }

    /// Creates and locks the partial file, replacing a leftover one.
    ///
    /// Between creating and locking, another process may take the new file for a leftover: it locks it first and
    /// removes it. Hence the file counts as ours only if the name still leads to it once it is locked.
    fn create_partial(&self, io: &dyn Io) -> Result<(OwnedFd, (u64, u64))> {
        for _ in 0..ATTEMPTS_MAX {
            match retry_on_intr(|| io.create(self.directory.as_fd(), &self.partial)) {
                Ok(file) => match self.claim(io, file.as_fd()) {
                    Ok(Claim::Ours(identity)) => return Ok((file, identity)),
                    Ok(Claim::Locked | Claim::Moved) => {}
                    Err(error) => {
                        self.remove_unclaimed(io, file.as_fd());
                        return Err(error);
                    }
                },
                Err(Errno::EXIST) => self.remove_leftover(io)?,
                Err(cause) => return Err(self.failed("creating", cause)),
            }
        }
        Err(self.busy())
    }

    /// Locks a file that was opened by the partial name.
    fn claim(&self, io: &dyn Io, file: BorrowedFd<'_>) -> Result<Claim> {
        match retry_on_intr(|| io.lock(file)) {
            Err(Errno::WOULDBLOCK) => return Ok(Claim::Locked),
            outcome => outcome.map_err(|cause| self.failed("locking", cause))?,
        }
        let opened = retry_on_intr(|| io.status(file)).map_err(|cause| self.failed("examining", cause))?;
        let named = self.status_of(io, &self.partial)?.map(identity);
        let opened = identity(opened);
        Ok(if named == Some(opened) { Claim::Ours(opened) } else { Claim::Moved })
    }

    /// Removes the file that we have just created but could not lock, unless the name leads to another one by now.
    fn remove_unclaimed(&self, io: &dyn Io, file: BorrowedFd<'_>) {
        let created = retry_on_intr(|| io.status(file)).ok().map(identity);
        let named = self.status_of(io, &self.partial).ok().flatten().map(identity);
        if created.is_some() && created == named {
            // If it stays, it is an unlocked leftover, which the next save replaces.
            let _ = retry_on_intr(|| io.unlink(self.directory.as_fd(), &self.partial));
        }
    }

    /// Removes a partial file that nobody is writing.
    fn remove_leftover(&self, io: &dyn Io) -> Result<()> {
        match self.status_of(io, &self.partial)? {
            None => return Ok(()),
            Some(status) if status.kind == FileType::RegularFile => {}
            Some(_) => {
                let message =
                    format!("{} is not a regular file; remove it first", self.partial_path.display());
                return Err(Error::new(ErrorKind::TargetExists, message).at_path(&self.partial_path));
            }
        }
        let file = match retry_on_intr(|| io.open_existing(self.directory.as_fd(), &self.partial)) {
            Err(Errno::NOENT) => return Ok(()),
            outcome => outcome.map_err(|cause| self.failed("opening", cause))?,
        };
        match self.claim(io, file.as_fd())? {
            Claim::Ours(_) => retry_on_intr(|| io.unlink(self.directory.as_fd(), &self.partial))
                .map_err(|cause| self.failed("removing", cause)),
            Claim::Locked => Err(self.busy()),
            Claim::Moved => Ok(()),
        }
    }

    /// The status of what has the name `name`, if anything has.
    fn status_of(&self, io: &dyn Io, name: &OsStr) -> Result<Option<Status>> {
        match retry_on_intr(|| io.status_at(self.directory.as_fd(), name)) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::NOENT) => Ok(None),
            Err(cause) => Err(self.failed("examining", cause)),
        }
    }

    fn failed(&self, action: &str, cause: Errno) -> Error {
        Error::os(format!("{action} {} failed", self.partial_path.display()), cause)
            .at_path(&self.partial_path)
    }

    fn busy(&self) -> Error {
        let message = format!("another process is writing {}", self.partial_path.display());
        Error::new(ErrorKind::TargetBusy, message).at_path(&self.partial_path)
    }
}

fn identity(status: Status) -> (u64, u64) {
    (status.device, status.inode)
}
