//! A process that stays known by a descriptor, whatever becomes of its number.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{Error, ErrorKind, Result};

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A pidfd: it tells of the end of one process for good, and asking it takes no descriptor.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// The process that has the number `pid` now.
    ///
    /// # Errors
    /// `GuestGone` if there is none, `HostUnsupported` without a free descriptor or on a kernel without pidfds.
    pub fn open(pid: i32) -> Result<Self> {
        let gone = || Error::new(ErrorKind::GuestGone, format!("there is no process {pid}"));
        let number = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or_else(gone)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| match errno {
            // A thread's number is EINVAL or, since Linux 6.9, ENOENT.
            Errno::SRCH | Errno::INVAL | Errno::NOENT => gone(),
            errno => Error::os(format!("opening a pidfd of process {pid} failed"), errno),
        })?;
        Ok(Self(pidfd))
    }

    /// Whether the process has ended; one that nobody has waited for yet has. If the kernel does not tell, it has not.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // A pidfd is readable once its process has ended.
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, Some(&AT_ONCE))).is_ok_and(|ready| ready > 0)
            && fds[0].revents().contains(PollFlags::IN)
    }

    /// The descriptor's number, for as long as this lives.
    pub(super) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_end_of_a_process_is_known_before_and_after_it_was_waited_for() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id().cast_signed();
        let process = Pidfd::open(pid).unwrap();
        assert!(!process.has_ended());
        child.kill().unwrap();
        while !process.has_ended() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(process.has_ended());
        for pid in [pid, 0] {
            assert_eq!(Pidfd::open(pid).unwrap_err().kind, ErrorKind::GuestGone);
        }
    }
}
