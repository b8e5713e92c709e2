//! The life of the image file: created under a name that nobody mistakes for an image, filled, made durable, renamed.
//!
//! While it is written the file is called `NAME.partial` and locked. A reader sees `NAME` only when it is whole and on
//! disk. All calls go through the I/O engine, so that the simulated engine's faults reach every step.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::io::{Io, Status};
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

/// What is appended to the name of an image that is being written.
pub const PARTIAL_SUFFIX: &str = ".partial";
/// Longest file name in bytes (NAME_MAX of every file system that takes images).
const NAME_BYTES_MAX: usize = 255;
/// How often another process may snatch the partial file's name from us before we call it busy.
const ATTEMPTS_MAX: u32 = 16;

/// What direct I/O on a file has to be aligned to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Addresses of buffers.
    pub memory: u32,
    /// File offsets and lengths.
    pub offset: u32,
}

/// An image that is being written. Dropped before it was published, it vanishes.
#[derive(Debug)]
pub struct ImageFile {
    io: Arc<dyn Io>,
    place: Place,
    file: OwnedFd,
    identity: (u64, u64),
    force: bool,
    direct: bool,
    phase: Mutex<Phase>,
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
    /// The file has its final name.
    Published,
    /// The file is gone.
    Discarded,
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

/// What became of an attempt to lock the file that has the partial name.
enum Claim {
    /// It is locked by us and has the name: device and inode.
    Ours((u64, u64)),
    /// Another process holds its lock.
    Locked,
    /// It has lost the name meanwhile.
    Moved,
}

impl ImageFile {
    /// Creates `path` as a locked `path.partial` that only its owner can read. A leftover partial file that nobody
    /// locks is replaced. With `force`, publishing will replace what has the name `path`. With `direct`, transfers
    /// will use direct I/O.
    ///
    /// # Errors
    /// `TargetExists` if `path` exists and `force` is not set, or cannot be replaced; `TargetBusy` if another process
    /// is writing it; `HostUnsupported` if `direct` is set and the file system has no direct I/O on pages; `Usage`
    /// for a path that names no file; or the errno of a call. Nothing is left behind.
    pub fn create(io: Arc<dyn Io>, path: &Path, force: bool, direct: bool) -> Result<Self> {
        let place = Place::of(io.as_ref(), path)?;
        place.check_final(io.as_ref(), force)?;
        let (file, identity) = place.create_partial(io.as_ref())?;
        let phase = Mutex::new(Phase::Writing);
        let image = Self { io, place, file, identity, force, direct, phase };
        if direct {
            image.probe_direct()?;
        }
        Ok(image)
    }

    /// The open file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The engine it was created with.
    #[must_use]
    pub fn io(&self) -> &Arc<dyn Io> {
        &self.io
    }

    /// Sets the file's length in bytes.
    ///
    /// # Errors
    /// `Usage` during a transfer or after the end; `NoSpace` if the file system does not take files that long.
    pub fn set_length(&self, bytes: u64) -> Result<()> {
        let mut phase = self.phase_of("set the length of", &[Phase::Writing, Phase::Synced])?;
        *phase = Phase::Writing;
        let message = format!("setting the image's length to {bytes} bytes failed");
        self.call(&message, || self.io.set_length(self.fd(), bytes)).map_err(too_long)
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
        parts.iter().try_for_each(|(offset, bytes)| self.write_all(*offset, bytes))
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

    /// Gives the image its final name and makes that durable.
    ///
    /// # Errors
    /// `Usage` unless everything was synced; `TargetExists` if something got the final name meanwhile and `force` is
    /// not set; or the errno of a call. If only the last step fails, syncing the directory, then the image is whole
    /// and has its final name, but might lose it in a power failure; the message says so.
    pub fn publish(&self) -> Result<()> {
        let mut phase = self.phase_of("publish", &[Phase::Synced])?;
        if self.partial_identity()? != Some(self.identity) {
            let message =
                format!("{} was replaced or removed by somebody else", self.place.partial_path.display());
            return Err(Error::new(ErrorKind::Io, message).at_path(&self.place.partial_path));
        }
        self.rename()?;
        *phase = Phase::Published;
        self.sync_directory()
    }

    /// Removes the file and gives its space back. Does nothing after it was published or discarded, and leaves a
    /// partial file alone that is not ours.
    ///
    /// # Errors
    /// The errno of a call; the partial file is still there then.
    pub fn discard(&self) -> Result<()> {
        let mut phase = self.phase();
        if matches!(*phase, Phase::Published | Phase::Discarded) {
            return Ok(());
        }
        if self.partial_identity()? == Some(self.identity) {
            let message = format!("removing {} failed", self.place.partial_path.display());
            self.call(&message, || self.io.unlink(self.directory(), &self.place.partial))?;
            self.give_space_back();
        }
        *phase = Phase::Discarded;
        Ok(())
    }

    fn directory(&self) -> BorrowedFd<'_> {
        self.place.directory.as_fd()
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
        Err(Error::new(ErrorKind::Usage, message).at_path(&self.place.path))
    }

    fn call<T>(&self, message: &str, call: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
        retry_on_intr(call).map_err(|cause| Error::os(message, cause).at_path(&self.place.path))
    }

    /// Which file has the partial name now.
    fn partial_identity(&self) -> Result<Option<(u64, u64)>> {
        Ok(self.place.status_of(self.io.as_ref(), &self.place.partial)?.map(identity))
    }

    /// Empties the file: it stays open, and its space in use, for as long as its owner keeps this object. Not if it
    /// has another name: a publishing that failed half-way may have given it the final one.
    fn give_space_back(&self) {
        if self.io.status(self.fd()).is_ok_and(|status| status.nameless) {
            let _ = self.io.set_length(self.fd(), 0);
        }
    }

    fn probe_direct(&self) -> Result<()> {
        let alignment = direct_alignment(self.fd()).ok_or_else(|| self.no_direct())?;
        if u64::from(alignment.memory.max(alignment.offset)) > PAGE_BYTES {
            let message = format!(
                "direct I/O on this file system needs units of {} bytes, more than a guest page; use --no-direct",
                alignment.memory.max(alignment.offset)
            );
            return Err(Error::new(ErrorKind::HostUnsupported, message).at_path(&self.place.path));
        }
        Ok(())
    }

    fn set_direct(&self, direct: bool) -> Result<()> {
        let refused = |cause| match cause {
            Errno::INVAL => self.no_direct(),
            _ => Error::os("switching direct I/O on or off failed", cause).at_path(&self.place.path),
        };
        retry_on_intr(|| self.io.set_direct(self.fd(), direct)).map_err(refused)
    }

    fn no_direct(&self) -> Error {
        let message = "this file system has no direct I/O; use --no-direct, or another file system";
        Error::new(ErrorKind::HostUnsupported, message).at_path(&self.place.path)
    }

    fn write_all(&self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let message = format!("writing the image's metadata at offset {offset} failed");
            let written = self.call(&message, || match self.io.write_at(self.fd(), bytes, offset)? {
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

    fn rename(&self) -> Result<()> {
        let (partial, name) = (&self.place.partial, &self.place.name);
        let message = "renaming the finished image failed";
        if self.force {
            return self.call(message, || self.io.rename_over(self.directory(), partial, name)).map_err(
                |error| {
                    // The only thing that a file cannot replace.
                    let directory =
                        error.cause.as_ref().is_some_and(|c| c.raw_os_error() == Some(libc::EISDIR));
                    if directory { error.with_kind(ErrorKind::TargetExists) } else { error }
                },
            );
        }
        match retry_on_intr(|| self.io.rename_new(self.directory(), partial, name)) {
            // Network and FUSE file systems that do not know RENAME_NOREPLACE: a second name is never put over
            // another file either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                retry_on_intr(|| self.io.link(self.directory(), partial, name))
                    .map_err(|cause| self.no_link(message, cause))?;
                // Should the old name stay, it leads to the same whole file, and the next save there replaces it.
                let _ = retry_on_intr(|| self.io.unlink(self.directory(), partial));
                Ok(())
            }
            outcome => outcome.map_err(|cause| Error::os(message, cause).at_path(&self.place.path)),
        }
    }

    fn no_link(&self, message: &str, cause: Errno) -> Error {
        match cause {
            // What link(2) says on file systems without hard links; the kernel's protection of links is only for
            // other people's files.
            Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS => {
                let message = "this file system can neither rename a file without replacing another one nor make hard \
                               links; use --force, or another file system";
                Error::os(message, cause).with_kind(ErrorKind::HostUnsupported)
            }
            _ => Error::os(message, cause),
        }
        .at_path(&self.place.path)
    }

    fn sync_directory(&self) -> Result<()> {
        match retry_on_intr(|| self.io.sync_directory(self.directory())) {
            // A file system that cannot sync directories; there is no other way to ask it.
            Err(Errno::INVAL) => Ok(()),
            outcome => outcome.map_err(|cause| {
                let message = "the image is complete and has its final name, but syncing its directory failed: \
                               the name might be lost in a power failure";
                Error::os(message, cause).at_path(&self.place.path)
            }),
        }
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        // There is nobody to tell; a partial file that stays is replaced by the next save.
        let _ = self.discard();
    }
}

impl Place {
    fn of(io: &dyn Io, path: &Path) -> Result<Self> {
        let names_directory = path.as_os_str().as_bytes().ends_with(b"/");
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
            Some(_) => "exists already; use --force to replace it",
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

/// What direct I/O on `file` has to be aligned to, or `None` if its file system has no direct I/O.
#[must_use]
pub fn direct_alignment(file: BorrowedFd<'_>) -> Option<Alignment> {
    // Linux 6.1 and file systems that fill it in; zero says that there is no direct I/O.
    let status = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let status = status.filter(|status| status.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    if let Some(status) = status {
        let (memory, offset) = (status.stx_dio_mem_align, status.stx_dio_offset_align);
        return (memory != 0 && offset != 0).then_some(Alignment { memory, offset });
    }
    // Others are asked by trying, and a page suits every disk that is not stranger than most.
    let flags = rustix::fs::fcntl_getfl(file).ok()?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).ok()?;
    rustix::fs::fcntl_setfl(file, flags).ok()?;
    Some(Alignment { memory: 4096, offset: 4096 })
}

fn identity(status: Status) -> (u64, u64) {
    (status.device, status.inode)
}

/// ftruncate says EINVAL for a length that no file can have.
fn too_long(error: Error) -> Error {
    match error.cause.as_ref().and_then(io::Error::raw_os_error) {
        Some(libc::EINVAL) => error.with_kind(ErrorKind::NoSpace),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
