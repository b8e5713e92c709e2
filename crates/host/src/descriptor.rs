//! Descriptors by number, as they come from JavaScript: any number, open or not.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use mapram_engine::{Error, Result};

/// A descriptor of our own for the file that `fd` has open, so that the caller may close his whenever he likes.
///
/// # Errors
/// `Usage` if `fd` is not an open descriptor, `HostUnsupported` if there are too many.
pub fn duplicate(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: the call takes two numbers and a command, and touches no memory.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy >= 0 {
        // SAFETY: the kernel has just made this fd for us; nobody else knows it.
        return Ok(unsafe { OwnedFd::from_raw_fd(copy) });
    }
    let cause = io::Error::last_os_error();
    if cause.raw_os_error() == Some(libc::EBADF) {
        return Err(Error::usage(format!("{fd} is not an open descriptor")));
    }
    Err(Error::os(format!("descriptor {fd} cannot be duplicated"), cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mapram_engine::ErrorKind;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_number_that_is_no_open_descriptor_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_ne!(duplicate(file.as_raw_fd()).unwrap().as_raw_fd(), file.as_raw_fd());
        for fd in [-1, RawFd::MIN, RawFd::MAX] {
            let error = duplicate(fd).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.message.contains(&fd.to_string()), "{error}");
        }
    }
}
