//! An image that is written to a block device, which is there already and is neither created, renamed nor truncated.
//!
//! What a reader goes by is the magic at the start. It is overwritten, durably, before anything else is written, and
//! written last of all, when everything else is durable. So a save that ends at any moment leaves nothing that looks like
//! an image unless it is a whole one.

use std::fs;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::opened::Opened;
use super::writer::Unpublished;
use super::{device_number, kind, refusal};
use crate::io::Io;
use crate::{Error, ErrorKind, PAGE, PAGE_BYTES, Result};

/// Magic and version at the start of a migration stream (docs/format.md): less than a sector, so that no crash tears them.
const MAGIC_BYTES: usize = 8;
/// What is there instead where there is no image.
const NO_MAGIC: [u8; MAGIC_BYTES] = [0; MAGIC_BYTES];
/// What QEMU's migration streams begin with (QEMU_VM_FILE_MAGIC in migration/qemu-file-types.h).
const MAGIC: &[u8] = b"QEVM";
/// Bytes at the device's end that are kept for the record of the image's length (docs/format.md): a page, which no device has
/// longer sectors than.
const RECORD_BYTES: u64 = PAGE_BYTES;

/// Why a target is in use that QEMU holds.
const LOCKED: &str = "another program holds a lock on it, as a QEMU does whose guest has it for a disk";

/// A block device that is ours alone.
#[derive(Debug)]
pub(super) struct Device {
    /// Bytes of the device.
    pub(super) bytes: u64,
    /// Whether making what it held unreadable has begun.
    wiped: bool,
    /// The image's first bytes, kept back until all others are durable.
    magic: [u8; MAGIC_BYTES],
}

impl Device {
    /// Opens what `path` leads to, if that is a block device.
    pub(super) fn open(io: &Arc<dyn Io>, path: &Path, force: bool) -> Result<Option<(Opened, Self)>> {
        let failing = |action: &str| format!("{action} {} failed", path.display());
        let failed = |action: &str, cause| Error::os(failing(action), cause).at_path(path);
        match retry_on_intr(|| io.status_of(path)) {
            Ok(status) if kind(status) == FileType::BlockDevice => {}
            // Whoever creates a file there says what is wrong with the path.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::NAMETOOLONG) => {
                return Ok(None);
            }
            Err(cause) => return Err(failed("examining", cause)),
        }
        let file = retry_on_intr(|| io.open_device(path)).map_err(|cause| match cause {
            Errno::BUSY => {
                in_use(path, "it is mounted, or part of another device, or another program has it for itself")
            }
            _ => failed("opening", cause),
        })?;
        let device = Opened { io: Arc::clone(io), path: path.to_owned(), file };
        let examining = failing("examining");
        if kind(device.call(&examining, |io, file| io.status(file))?) != FileType::BlockDevice {
            return Err(failed("opening", Errno::NODEV));
        }
        if device.call(&examining, |io, file| io.is_read_only(file))? {
            return Err(refusal(ErrorKind::Permission, path, "is read-only"));
        }
        if device.call(&examining, |io, file| io.is_locked(file))? {
            return Err(in_use(path, LOCKED));
        }
        // A lock is on the node that was opened, which need not be ours, and on a part of the device, or all of it.
        let mut others = other_names(device.file.as_fd()).into_iter();
        if let Some(other) = others.find(|other| holds_lock(io.as_ref(), other)) {
            return Err(in_use(path, &format!("it shares its bytes with {}, and {LOCKED}", other.display())));
        }
        if let Some(twin) = twin_of(device.file.as_fd()) {
            return Err(in_use(path, &format!("{} is on the same file", twin.display())));
        }
        let bytes = device.call(&examining, |io, file| io.length(file))?;
        let mut start = [0; MAGIC.len()];
        let got = device.call(&failing("reading"), |io, file| io.read_at(file, &mut start, 0))?;
        if !force && start.get(..got) == Some(MAGIC) {
            let what = "holds an image, and overwriting it was not asked for";
            return Err(refusal(ErrorKind::TargetExists, path, what));
        }
        Ok(Some((device, Self { bytes, wiped: false, magic: NO_MAGIC })))
    }

    /// Checks that an image of `bytes` has room, and makes what the device held unreadable.
    pub(super) fn reserve(&mut self, device: &Opened, bytes: u64) -> Result<()> {
        if bytes.checked_add(RECORD_BYTES).is_none_or(|needed| needed > self.bytes) {
            let message = format!(
                "the image needs {bytes} bytes and {RECORD_BYTES} more at the device's end, and the device has {}",
                self.bytes
            );
            return Err(Error::new(ErrorKind::NoSpace, message).at_path(&device.path));
        }
        if !self.wiped {
            // A wipe that fails half-way has touched the device too.
            self.wiped = true;
            self.wipe(device)?;
            // What it held under the image's holes is harmless, so a device that cannot discard need not. The pages that
            // were overwritten are left out: what is read where something was discarded may be anything, the old magic too.
            let between = RECORD_BYTES..self.bytes - RECORD_BYTES;
            let _ = retry_on_intr(|| device.io.discard(device.file.as_fd(), between.clone()));
        }
        Ok(())
    }

    /// Writes what of `bytes` may be written now: all but the magic, which is kept back.
    pub(super) fn write(&mut self, device: &Opened, offset: u64, bytes: &[u8]) -> Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(MAGIC_BYTES);
        let (head, rest) = bytes.split_at(bytes.len().min(MAGIC_BYTES - start));
        self.magic[start..start + head.len()].copy_from_slice(head);
        device.write_all(offset + head.len() as u64, rest)
    }

    /// Makes an image of what was written, durably.
    pub(super) fn publish(&self, device: &Opened) -> Result<(), Unpublished> {
        write_magic(device, self.magic).map_err(|mut error| {
            // The magic may be there or not, and has to go before anybody is told that there is no image.
            let perhaps_published = write_magic(device, NO_MAGIC).is_err();
            if perhaps_published {
                let why = "for its first bytes could not be erased again";
                error.message += &format!("; {} may hold the whole image, {why}", device.path.display());
            }
            Unpublished { error, perhaps_published }
        })
    }

    /// Makes sure that nothing looks like an image, unless the device still holds what it held before.
    pub(super) fn give_up(&self, device: &Opened) -> Result<()> {
        if self.wiped { self.wipe(device) } else { Ok(()) }
    }

    /// Overwrites the magic, durably, and only then the rest of the first page and the record at the end: a power cut
    /// may leave any sectors of a write, and all but the first would make an image that is not whole.
    fn wipe(&self, device: &Opened) -> Result<()> {
        let zeros = [0; PAGE];
        write_magic(device, NO_MAGIC)?;
        device.write_all(MAGIC_BYTES as u64, &zeros[MAGIC_BYTES..])?;
        device.write_all(self.bytes - RECORD_BYTES, &zeros)
    }
}

/// Writes a device's first bytes, durably.
fn write_magic(device: &Opened, magic: [u8; MAGIC_BYTES]) -> Result<()> {
    device.write_all(0, &magic)?;
    device.call("syncing the device failed", |io, file| io.sync_data(file))
}

fn in_use(path: &Path, how: &str) -> Error {
    refusal(ErrorKind::TargetBusy, path, &format!("is in use: {how}"))
}

/// Refuses to replace a file that another program has locked, or that a loop device is on.
pub(super) fn require_unused(io: &dyn Io, path: &Path) -> Result<()> {
    let name = path.parent().zip(path.file_name());
    let file =
        name.and_then(|(parent, name)| Some(fs::canonicalize(Path::new(".").join(parent)).ok()?.join(name)));
    match file.and_then(|file| loop_device_on(&file, Path::new(""))) {
        Some(device) => Err(in_use(path, &format!("{} is on it", device.display()))),
        None if holds_lock(io, path) => Err(in_use(path, LOCKED)),
        None => Ok(()),
    }
}

/// Whether a program holds a lock on a regular file or a block device, as far as we may look; what a link leads to is not meant.
fn holds_lock(io: &dyn Io, path: &Path) -> bool {
    // Merely opening other kinds may do something.
    let is_meant = |kind: fs::FileType| kind.is_file() || kind.is_block_device();
    if !fs::symlink_metadata(path).is_ok_and(|found| is_meant(found.file_type())) {
        return false;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .is_ok_and(|file| retry_on_intr(|| io.is_locked(file.as_fd())).unwrap_or(false))
}

/// Under which names a program may have a device open, or some of its bytes: the host's own nodes of the whole device and of its
/// partitions (of one partition, the whole one's and its own), and the file behind a loop device.
fn other_names(device: BorrowedFd<'_>) -> Vec<PathBuf> {
    let Some(own) = directory_of(device) else { return Vec::new() };
    let is_partition = |directory: &PathBuf| directory.join("partition").exists();
    let entries = fs::read_dir(&own).into_iter().flatten().flatten().map(|entry| entry.path());
    let partitions = entries.filter(is_partition);
    // A partition's directory is in that of its device.
    let whole = own.parent().filter(|_| is_partition(&own)).map(Path::to_owned);
    let directories = iter::once(own.clone()).chain(whole).chain(partitions);
    directories.flat_map(|directory| [node(&directory), backing_file(&directory)]).flatten().collect()
}

/// Another loop device on the file behind the device: nothing else keeps apart what is done to the two.
fn twin_of(device: BorrowedFd<'_>) -> Option<PathBuf> {
    let own = directory_of(device)?;
    loop_device_on(&backing_file(&own)?, &own)
}

/// A loop device, other than that of the directory `own`, that is on the file of that name.
fn loop_device_on(file: &Path, own: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir("/sys/block").ok()?.flatten();
    let mut others =
        entries.filter_map(|entry| fs::canonicalize(entry.path()).ok()).filter(|other| other != own);
    others.find(|other| backing_file(other).as_deref() == Some(file)).and_then(|other| node(&other))
}

/// The directory of sysfs that is about the device.
fn directory_of(device: BorrowedFd<'_>) -> Option<PathBuf> {
    let status = rustix::fs::fstat(device).ok()?;
    fs::canonicalize(Path::new("/sys/dev/block").join(device_number(status.st_rdev))).ok()
}

/// The node of the device that a directory of sysfs is about.
fn node(directory: &Path) -> Option<PathBuf> {
    let facts = fs::read_to_string(directory.join("uevent")).ok()?;
    facts.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| Path::new("/dev").join(name))
}

fn backing_file(directory: &Path) -> Option<PathBuf> {
    let path = fs::read_to_string(directory.join("loop/backing_file")).ok()?;
    path.strip_suffix('\n').map(PathBuf::from)
}

/// Refuses a directory of device nodes: a name there that leads to no device is a misspelt one, and what is created there
/// takes the host's memory.
pub(super) fn require_no_devices(directory: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Ok(status) = rustix::fs::fstat(directory) else { return Ok(()) };
    let device = device_number(status.st_dev);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !mounts.lines().any(|line| is_device_directory(line, &device)) {
        return Ok(());
    }
    let what =
        "is among the devices and names none of them; name a block device that exists, or a file on a disk";
    Err(refusal(ErrorKind::Usage, path, what))
}

/// Whether a line of mountinfo is that of the file system with this number, and it is devtmpfs or stands on /dev, as a
/// container's own does.
fn is_device_directory(line: &str, device: &str) -> bool {
    let (mount, source) = line.split_once(" - ").unwrap_or((line, ""));
    let mut fields = mount.split(' ').skip(2);
    fields.next() == Some(device) && (source.starts_with("devtmpfs ") || fields.nth(1) == Some("/dev"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_devices_are_known_by_their_mounts() {
        let devtmpfs = "23 28 0:6 / /chroot/dev rw,nosuid - devtmpfs udev rw";
        let container = "901 900 0:61 / /dev rw - tmpfs tmpfs rw,size=65536k";
        let shm = "25 23 0:21 / /dev/shm rw - tmpfs tmpfs rw";
        assert!(is_device_directory(devtmpfs, "0:6") && is_device_directory(container, "0:61"));
        assert!(!is_device_directory(devtmpfs, "0:61") && !is_device_directory(shm, "0:21"));
    }
}
