//! The default engine: one io_uring for each queue, through the tokio-rs bindings.

use std::io;
use std::thread;
use std::time::Duration;

use io_uring::{EnterFlags, IoUring as Ring, opcode, squeue, types};
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use super::{Completion, Direction, Files, Io, Queue, Request, check_depth, retry_no_memory};
use crate::pool::Pool;

/// Pushed bytes from which on they are submitted at once, so that the disk does not idle until the next wait;
/// smaller requests are gathered, for them the system call counts.
const EAGER_BYTES: u64 = 256 << 10;
/// Kernel threads for requests that would block. Writes into holes end up there and fight for the inode's lock, so
/// more threads only burn time.
const WORKERS_MAX: u32 = 4;
/// How often, a millisecond apart, the kernel may refuse requests for want of memory before that is an error.
const REFUSALS_MAX: u32 = 1000;

/// io_uring through the `io-uring` crate.
#[derive(Debug, Clone, Copy, Default)]
pub struct IoUring;

impl Files for IoUring {}

impl Io for IoUring {
    fn name(&self) -> &'static str {
        "io-uring"
    }

    fn queue<'pool>(&self, depth: u32, pool: &'pool Pool) -> io::Result<Box<dyn Queue + 'pool>> {
        check_depth(depth)?;
        let ring = retry_no_memory(|| set_up(depth))?;
        // Needs Linux 5.15; without it there are more workers than are useful, that is all.
        let _ = ring.submitter().register_iowq_max_workers(&mut [WORKERS_MAX, 0]);
        let registered = register(&ring, pool).then_some(pool);
        let depth = depth as usize;
        Ok(Box::new(RingQueue { ring, registered, depth, in_flight: 0, unsubmitted_bytes: 0 }))
    }
}

/// A ring with the best set-up that this kernel knows: deferred task work (6.1), cooperative (5.19), or plain.
fn set_up(depth: u32) -> io::Result<Ring> {
    let mut deferred = Ring::builder();
    deferred.setup_clamp().setup_submit_all().setup_single_issuer().setup_defer_taskrun();
    let mut cooperative = Ring::builder();
    cooperative.setup_clamp().setup_submit_all().setup_coop_taskrun();
    let mut plain = Ring::builder();
    plain.setup_clamp();
    let errno = |ring: &io::Result<Ring>| ring.as_ref().err().and_then(io::Error::raw_os_error);
    let mut newer = [deferred, cooperative].into_iter().map(|ring| ring.build(depth));
    newer.find(|ring| errno(ring) != Some(libc::EINVAL)).unwrap_or_else(|| plain.build(depth))
}

/// Registers the pool, so that the kernel pins its pages once instead of for each request. The kernel takes up to 1 GiB as one
/// buffer, and pools are smaller. `false` if the queue has to do without.
fn register(ring: &Ring, pool: &Pool) -> bool {
    let whole = libc::iovec { iov_base: pool.base().cast(), iov_len: pool.bytes() };
    // SAFETY: this is the pool's mapping, which outlives the queue that owns the ring.
    may_lock_freely() && unsafe { ring.submitter().register_buffers(&[whole]) }.is_ok()
}

/// Whether registered memory counts against no limit. Where it does, it uses up what the rings of further queues need
/// themselves (Linux 6.18 refuses them with ENOMEM): the pool of one thread would starve the others.
fn may_lock_freely() -> bool {
    let capable = rustix::thread::capabilities(None);
    capable.is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
        || rustix::process::getrlimit(Resource::Memlock).current.is_none()
}

struct RingQueue<'pool> {
    ring: Ring,
    /// The pool, if the kernel knows it as buffer 0.
    registered: Option<&'pool Pool>,
    depth: usize,
    in_flight: usize,
    unsubmitted_bytes: u64,
}

impl Queue for RingQueue<'_> {
    unsafe fn push(&mut self, request: Request) -> io::Result<()> {
        if self.in_flight == self.depth {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let entry = self.entry(&request);
        // SAFETY: the caller keeps the buffer and the file as they are until the completion or until this queue was
        // dropped, and dropping it waits.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::WouldBlock)?;
        self.in_flight += 1;
        self.unsubmitted_bytes += u64::from(request.length);
        if self.unsubmitted_bytes >= EAGER_BYTES {
            // The request is taken already: should this fail, the next wait meets the same error and reports it.
            let _ = self.enter(true, 0);
        }
        Ok(())
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        let before = completions.len();
        // The kernel may take fewer requests than were pushed and then not wait at all.
        while self.in_flight > 0 && completions.len() == before {
            self.enter(true, 1)?;
            self.collect(completions);
        }
        Ok(())
    }
}

impl RingQueue<'_> {
    fn entry(&self, request: &Request) -> squeue::Entry {
        let Request { buffer, length, offset, .. } = *request;
        let fd = types::Fd(request.fd);
        let is_registered = self.registered.is_some_and(|pool| pool.contains(buffer, length as usize));
        let entry = match (request.direction, is_registered) {
            (Direction::Read, true) => opcode::ReadFixed::new(fd, buffer, length, 0).offset(offset).build(),
            (Direction::Read, false) => opcode::Read::new(fd, buffer, length).offset(offset).build(),
            (Direction::Write, true) => opcode::WriteFixed::new(fd, buffer, length, 0).offset(offset).build(),
            (Direction::Write, false) => opcode::Write::new(fd, buffer, length).offset(offset).build(),
        };
        entry.user_data(request.token)
    }

    /// Requests that the kernel has taken and not completed.
    fn in_kernel(&mut self) -> usize {
        self.in_flight - self.ring.submission().len()
    }

    /// Submits what was pushed (if `submit`) and waits until `want` completions can be collected, in one system call.
    /// The only place that judges an errno of io_uring_enter(2).
    fn enter(&mut self, mut submit: bool, want: u32) -> io::Result<()> {
        let mut refusals = 0;
        loop {
            let pushed =
                if submit { u32::try_from(self.ring.submission().len()).unwrap_or(u32::MAX) } else { 0 };
            let flags = if want > 0 { EnterFlags::GETEVENTS.bits() } else { 0 };
            // SAFETY: the kernel is told of at most as many entries as are in the submission queue, each of which
            // `push` has vouched for, and no argument structure is passed.
            let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(pushed, want, flags, None) };
            let Err(cause) = entered else {
                if submit {
                    self.unsubmitted_bytes = 0;
                }
                return Ok(());
            };
            match cause.raw_os_error() {
                // A signal came before anything was done.
                Some(libc::EINTR) => {}
                // No memory for more requests, or no room for completions: what is in the kernel has to end first.
                Some(libc::EAGAIN | libc::EBUSY) if want == 0 => return Ok(()),
                Some(libc::EAGAIN | libc::EBUSY) if self.in_kernel() > 0 => submit = false,
                Some(libc::EAGAIN | libc::EBUSY) if refusals < REFUSALS_MAX => {
                    refusals += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                _ => return Err(cause),
            }
        }
    }

    /// Copies what has completed out of the ring.
    fn collect(&mut self, completions: &mut Vec<Completion>) {
        let before = completions.len();
        completions.extend(self.ring.completion().map(|entry| Completion {
            token: entry.user_data(),
            result: u32::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result())),
        }));
        self.in_flight -= completions.len() - before;
    }
}

impl Drop for RingQueue<'_> {
    fn drop(&mut self) {
        // What was pushed but never submitted is forgotten with the ring.
        let mut completions = Vec::new();
        while self.in_kernel() > 0 {
            // The kernel may still write to the buffers, so there is no way out of this loop but their completion;
            // no error of a mere wait is known to last.
            if self.enter(false, 1).is_err() {
                thread::sleep(Duration::from_millis(1));
            }
            self.collect(&mut completions);
        }
    }
}
