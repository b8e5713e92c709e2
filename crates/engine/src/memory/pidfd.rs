//! A process that stays known by a descriptor, whatever becomes of its number.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{Error, ErrorKind, Result};

/// A pidfd: it tells of the end of one process for good, and asking it takes no descriptor.
#[derive(Debug)]
pub struct Pidfd(pub(super) OwnedFd);

impl Pidfd {
    /// The process that has the number `pid` now.
    ///
    /// # Errors
    /// `GuestGone` if there is none, `HostUnsupported` without a free descriptor or on a kernel without pidfds.
    pub fn open(pid: i32) -> Result<Self> {
        let number = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
        let number = number.ok_or_else(|| no_process(pid))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| match errno {
            // A thread's number is EINVAL or, since Linux 6.9, ENOENT.
            Errno::SRCH | Errno::INVAL | Errno::NOENT => no_process(pid),
            errno => Error::os(format!("opening a pidfd of process {pid} failed"), errno),
        })?;
        Ok(Self(pidfd))
    }

    /// Whether the process has ended; one that nobody has waited for yet has. If the kernel does not tell, it has not.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // A pidfd is readable once its process has ended.
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, Some(&Timespec::default()))).is_ok_and(|ready| ready > 0)
            && fds[0].revents().contains(PollFlags::IN)
    }

    /// Checks that the process has the number `pid` in the pid namespace of /proc as well: /proc was perhaps mounted in
    /// another one than ours, and then the same number leads to another process there.
    pub(super) fn check_number_in_proc(&self, pid: i32) -> Result<()> {
        let number = match std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd())) {
            Ok(text) => text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()),
            // We are none of its processes.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(Error::os("asking /proc for the number of a process failed", cause)),
        };
        match number {
            Some(number) if number == pid => Ok(()),
            // So the kernel says that it has ended.
            Some(-1) => Err(no_process(pid)),
            _ => {
                let message = "/proc is of another pid namespace than mapram, so that no process can be told by it: \
                               mount one here";
                Err(Error::new(ErrorKind::HostUnsupported, message).at_path("/proc"))
            }
        }
    }
}

pub(super) fn no_process(pid: i32) -> Error {
    Error::new(ErrorKind::GuestGone, format!("there is no process {pid}"))
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
