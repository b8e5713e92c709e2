//! One error type for everything the engine does: a stable kind, a sentence, and where it happened.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Result of an engine operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The stable class of an [`Error`]; displayed, it is the code that crosses into JavaScript and the CLI's JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The target file exists and replacing it was not asked for.
    #[error("E_TARGET_EXISTS")]
    TargetExists,
    /// Another process is writing the same target.
    #[error("E_TARGET_BUSY")]
    TargetBusy,
    /// A file or directory does not exist.
    #[error("E_NOT_FOUND")]
    NotFound,
    /// The file system or quota is full, or the file size limit was hit.
    #[error("E_NO_SPACE")]
    NoSpace,
    /// The disk or the file system failed.
    #[error("E_IO")]
    Io,
    /// The image is damaged or is not an image.
    #[error("E_IMAGE_INVALID")]
    ImageInvalid,
    /// The host lacks something that was asked for.
    #[error("E_HOST_UNSUPPORTED")]
    HostUnsupported,
    /// The kernel refused access.
    #[error("E_PERMISSION")]
    Permission,
    /// The process whose memory was read or written is gone.
    #[error("E_GUEST_GONE")]
    GuestGone,
    /// The guest's monitor refuses a connection.
    #[error("E_QMP")]
    Qmp,
    /// The job was cancelled.
    #[error("E_CANCELLED")]
    Cancelled,
    /// A limit or an argument was violated by the caller.
    #[error("E_USAGE")]
    Usage,
    /// A bug in mapram: a panic, or something that cannot be.
    #[error("E_INTERNAL")]
    Internal,
}

/// What went wrong, where, and why.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The stable class.
    pub kind: ErrorKind,
    /// One sentence for people, without the cause.
    pub message: String,
    /// The file concerned.
    pub path: Option<PathBuf>,
    /// The byte offset concerned, in that file.
    pub offset: Option<u64>,
    /// The operating system's reason.
    #[source]
    pub cause: Option<io::Error>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), path: None, offset: None, cause: None }
    }

    /// The error for what the caller must not ask for.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// The error for a bug in mapram; `what` is one sentence without its end.
    pub fn internal(what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, format!("{what}: a bug in mapram, please report it"))
    }

    /// The error for a system call that failed with `cause`; the kind follows from its errno.
    pub fn os(message: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        let kind = kind_of(&cause);
        Self { cause: Some(cause), ..Self::new(kind, message) }
    }

    /// The same error with another kind.
    #[must_use]
    pub fn with_kind(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// The same error naming the file concerned.
    #[must_use]
    pub fn at_path(self, path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..self }
    }

    /// The same error naming the byte offset concerned.
    #[must_use]
    pub fn at_offset(self, offset: u64) -> Self {
        Self { offset: Some(offset), ..self }
    }
}

/// What a request of the I/O engine fails with whose thread panicked.
#[derive(Debug, thiserror::Error)]
#[error("an I/O thread panicked: a bug in mapram, please report it")]
pub(crate) struct Panicked;

/// Refuses what the caller must not ask for: a `Usage` with `message` unless it `is_allowed`.
pub(crate) fn require<M: Into<String>>(is_allowed: bool, message: impl FnOnce() -> M) -> Result<()> {
    if is_allowed { Ok(()) } else { Err(Error::usage(message())) }
}

fn kind_of(cause: &io::Error) -> ErrorKind {
    if cause.get_ref().is_some_and(|inner| inner.is::<Panicked>()) {
        return ErrorKind::Internal;
    }
    match cause.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorKind::NoSpace,
        Some(libc::ENOENT | libc::ENOTDIR) => ErrorKind::NotFound,
        Some(libc::EEXIST) => ErrorKind::TargetExists,
        Some(libc::EPERM | libc::EACCES | libc::EROFS) => ErrorKind::Permission,
        Some(libc::ESRCH) => ErrorKind::GuestGone,
        // Calls that do not exist here, and limits of the process or the host.
        Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EMFILE | libc::ENFILE | libc::ENOMEM) => {
            ErrorKind::HostUnsupported
        }
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_host_are_no_failures_of_the_disk() {
        let kind = |errno| Error::os("a call failed", io::Error::from_raw_os_error(errno)).kind;
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOSYS] {
            assert_eq!(kind(errno), ErrorKind::HostUnsupported);
        }
        assert_eq!(kind(libc::EROFS), ErrorKind::Permission);
        assert_eq!(kind(libc::EDQUOT), ErrorKind::NoSpace);
        assert_eq!(kind(libc::EIO), ErrorKind::Io);
    }

    #[test]
    fn a_panic_is_a_bug_of_ours() {
        let error = Error::os("writing failed", io::Error::other(Panicked));
        assert_eq!(error.kind.to_string(), "E_INTERNAL");
        assert!(error.cause.unwrap().to_string().contains("please report"));
    }
}
