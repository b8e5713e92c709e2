//! One error type for everything the engine does: a stable kind, a sentence, and where it happened.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Result of an engine operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The stable class of an [`Error`]; its [`code`](ErrorKind::code) is what users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The target file exists and replacing it was not asked for.
    TargetExists,
    /// Another process is writing the same target.
    TargetBusy,
    /// A file or directory does not exist.
    NotFound,
    /// The file system or quota is full, or the file size limit was hit.
    NoSpace,
    /// The disk or the file system failed.
    Io,
    /// The image is damaged or is not an image.
    ImageInvalid,
    /// The host lacks something that was asked for.
    HostUnsupported,
    /// The kernel refused access.
    Permission,
    /// The process whose memory was read or written is gone.
    GuestGone,
    /// The guest's monitor refuses a connection.
    Qmp,
    /// The job was cancelled.
    Cancelled,
    /// A limit or an argument was violated by the caller.
    Usage,
    /// A bug in mapram: a panic, or something that cannot be.
    Internal,
}

impl ErrorKind {
    /// The code that crosses into JavaScript and the CLI's JSON.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::TargetExists => "E_TARGET_EXISTS",
            Self::TargetBusy => "E_TARGET_BUSY",
            Self::NotFound => "E_NOT_FOUND",
            Self::NoSpace => "E_NO_SPACE",
            Self::Io => "E_IO",
            Self::ImageInvalid => "E_IMAGE_INVALID",
            Self::HostUnsupported => "E_HOST_UNSUPPORTED",
            Self::Permission => "E_PERMISSION",
            Self::GuestGone => "E_GUEST_GONE",
            Self::Qmp => "E_QMP",
            Self::Cancelled => "E_CANCELLED",
            Self::Usage => "E_USAGE",
            Self::Internal => "E_INTERNAL",
        }
    }
}

/// What went wrong, where, and why.
#[derive(Debug)]
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
    pub cause: Option<io::Error>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), path: None, offset: None, cause: None }
    }

    /// The error for a bug in mapram; `what` is one sentence without its end.
    pub fn internal(what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, format!("{what}: a bug in mapram, please report it"))
    }

    /// The error for a system call that failed with `cause`; the kind follows from its errno.
    pub fn os(message: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        Self { cause: Some(clone_os(&cause)), ..Self::new(kind_of(&cause), message) }
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

/// What a request of the I/O engine fails with whose thread panicked.
#[derive(Debug)]
pub(crate) struct Panicked;

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an I/O thread panicked: a bug in mapram, please report it")
    }
}

impl std::error::Error for Panicked {}

fn clone_os(cause: &io::Error) -> io::Error {
    match cause.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(cause.kind(), cause.to_string()),
    }
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
        assert_eq!(error.kind.code(), "E_INTERNAL");
        assert!(error.cause.unwrap().to_string().contains("please report"));
    }
}
