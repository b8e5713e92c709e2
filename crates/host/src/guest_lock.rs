//! One job at a time for each guest.

use std::os::fd::OwnedFd;

use mapram_engine::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::{Errno, retry_on_intr};

/// Locks process `pid` for one job: two that write to one guest, or of which one lets it run while the other saves it, spoil
/// it. The lock is on the process's directory in /proc, so it holds between all that see the same /proc, whoever they are,
/// until the descriptor is closed.
///
/// # Errors
/// `TargetBusy` if another job has it, `GuestGone` if there is no such process, or the errno of a call.
pub fn lock(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}");
    let failure = |errno| match errno {
        Errno::NOENT | Errno::SRCH => Error::new(ErrorKind::GuestGone, format!("there is no process {pid}")),
        Errno::WOULDBLOCK => Error::new(ErrorKind::TargetBusy, "another mapram is at work on this guest"),
        errno => Error::os(format!("locking process {pid} for this job failed"), errno),
    };
    let directory = open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let directory = directory.map_err(failure)?;
    retry_on_intr(|| flock(&directory, FlockOperation::NonBlockingLockExclusive)).map_err(failure)?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_locked_for_one_job_at_a_time() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let first = lock(pid).unwrap();
        assert_eq!(lock(pid).unwrap_err().kind, ErrorKind::TargetBusy);
        drop(first);
        lock(pid).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(lock(pid).unwrap_err().kind, ErrorKind::GuestGone);
    }
}
