//! A seeded engine for tests: real files, with faults.
//!
//! Everything it does follows from its seed, so a failing seed is the bug report (with one thread; several threads
//! take turns as the host schedules them). A fault may have had a part of its effect, as on a real disk: a write that
//! failed or came back short may have written more than it says.
//!
//! It can also write down what it told the disk, and say what a power cut at any point would have left.

mod journal;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use self::journal::Journal;
use super::blocking::transfer;
use super::{Completion, Direction, Files, Io, Queue, Request, check_depth};
use crate::pool::Pool;

/// What direct I/O moves on any disk that is not stranger than most.
const PAGE: u32 = 4096;

/// Which faults occur, and how often. The default is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Requests of a thousand that fail with EIO.
    pub errors: u32,
    /// Requests of a thousand that move fewer bytes than asked, or say so.
    pub short: u32,
    /// Requests of a thousand that fail with EINTR or EAGAIN, having moved nothing.
    pub transient: u32,
    /// Requests of a thousand that are held back while others are in flight.
    pub delayed: u32,
    /// Whether requests complete in any order rather than in that of their submission.
    pub reordered: bool,
    /// Bytes that can be written, by requests and metadata writes together, before ENOSPC.
    pub space_bytes: Option<u64>,
    /// Calls of a thousand in a file's life (create, lock, rename, ...) that fail.
    pub calls: u32,
    /// The one call in a file's life, counted from 0, that fails for sure.
    pub failing_call: Option<u64>,
    /// Whether syncing only says that it was done.
    pub lying_syncs: bool,
}

/// How many faults of each kind were injected so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Requests failed with EIO.
    pub errors: u64,
    /// Requests cut short.
    pub short: u64,
    /// Requests failed with EINTR or EAGAIN.
    pub transient: u64,
    /// Requests held back.
    pub delayed: u64,
    /// Writes that found no space.
    pub no_space: u64,
    /// Failed calls in a file's life.
    pub calls: u64,
}

/// The simulated engine.
#[derive(Debug)]
pub struct Simulated {
    shared: Arc<Shared>,
}

/// What the queues share with their engine.
#[derive(Debug)]
struct Shared {
    seed: u64,
    faults: Faults,
    injecting: AtomicBool,
    queues: AtomicU64,
    calls: AtomicU64,
    space_bytes: AtomicU64,
    random: Mutex<Random>,
    counts: Mutex<FaultCounts>,
    journal: Option<Mutex<Journal>>,
    /// The name of the file that passes for a block device.
    device: Option<OsString>,
}

impl Simulated {
    /// An engine whose faults follow from `seed`.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self::with(seed, faults, None, None)
    }

    /// An engine that writes down what happens to the files of `directory`. The one that is called `device`, if there is
    /// one, passes for a block device.
    ///
    /// # Errors
    /// What reading the files that are there now said.
    pub fn recording(seed: u64, faults: Faults, directory: &Path, device: Option<&str>) -> io::Result<Self> {
        let mut journal = Journal::default();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let status = Real.status_of(&path)?;
            let name = path.file_name().unwrap_or_default().to_owned();
            journal.was_there(name, identity(status), fs::read(path)?);
        }
        Ok(Self::with(seed, faults, Some(Mutex::new(journal)), device.map(OsString::from)))
    }

    /// How many things the disk was told so far.
    #[must_use]
    pub fn events(&self) -> usize {
        self.shared.journal.as_ref().map_or(0, |journal| locked(journal).len())
    }

    /// The files that a power cut behind the first `events` things would have left, by their names. What was synced is
    /// there; of all else any part may be, in any order, as `seed` has it.
    #[must_use]
    pub fn after_power_cut(&self, events: usize, seed: u64) -> BTreeMap<OsString, Vec<u8>> {
        let journal = self.shared.journal.as_ref();
        journal.map(|journal| locked(journal).after_power_cut(events, &mut Random(seed))).unwrap_or_default()
    }

    fn with(seed: u64, faults: Faults, journal: Option<Mutex<Journal>>, device: Option<OsString>) -> Self {
        let shared = Shared {
            seed,
            faults,
            injecting: AtomicBool::new(true),
            queues: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            space_bytes: AtomicU64::new(faults.space_bytes.unwrap_or(u64::MAX)),
            random: Mutex::new(Random(seed)),
            counts: Mutex::default(),
            journal,
            device,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The faults injected so far.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        *locked(&self.shared.counts)
    }

    /// Injects nothing from now on, so that a test can look at what is left of a failed job.
    pub fn heal(&self) {
        self.shared.injecting.store(false, Ordering::Relaxed);
    }
}

impl Io for Simulated {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn queue<'pool>(&self, depth: u32, _pool: &'pool Pool) -> io::Result<Box<dyn Queue + 'pool>> {
        check_depth(depth)?;
        let number = self.shared.queues.fetch_add(1, Ordering::Relaxed) + 1;
        let random = Random(self.shared.seed.wrapping_add(number.wrapping_mul(Random::STEP)));
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(FaultyQueue { shared, random, depth: depth as usize, held: Vec::new() }))
    }
}

/// Requests that the simulated disk has not carried out yet.
struct FaultyQueue {
    shared: Arc<Shared>,
    random: Random,
    depth: usize,
    held: Vec<Held>,
}

struct Held {
    request: Request,
    /// Waits that pass it over if another request can complete instead.
    delay: u32,
}

impl Queue for FaultyQueue {
    unsafe fn push(&mut self, request: Request) -> io::Result<()> {
        if self.held.len() == self.depth {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let delayed = self.shared.injecting() && self.random.chance(self.shared.faults.delayed);
        if delayed {
            self.shared.count(|counts| &mut counts.delayed);
        }
        let delay = if delayed { 1 + self.random.below(8) } else { 0 };
        self.held.push(Held { request, delay });
        Ok(())
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        let most = 1 + self.random.below(u32::try_from(self.held.len()).unwrap_or(u32::MAX));
        for turn in 0..most {
            let Some(request) = self.take(turn == 0) else {
                break;
            };
            // SAFETY: `push` passes its caller's promise on, and the completion was not returned yet.
            let result = unsafe { self.carry_out(request) };
            completions.push(Completion { token: request.token, result });
        }
        for held in &mut self.held {
            held.delay = held.delay.saturating_sub(1);
        }
        Ok(())
    }
}

impl FaultyQueue {
    /// The next request to carry out: one that is not delayed, or any if there `must` be one.
    fn take(&mut self, must: bool) -> Option<Request> {
        let mut ready: Vec<usize> =
            (0..self.held.len()).filter(|index| self.held[*index].delay == 0).collect();
        if ready.is_empty() && must {
            ready = (0..self.held.len()).collect();
        }
        let choices =
            if self.shared.faults.reordered { u32::try_from(ready.len()).unwrap_or(u32::MAX) } else { 1 };
        let index = *ready.get(self.random.below(choices) as usize)?;
        Some(self.held.remove(index).request)
    }

    /// Carries a request out, with the faults that are its lot.
    ///
    /// # Safety
    /// As for [`Queue::push`].
    unsafe fn carry_out(&mut self, request: Request) -> io::Result<u32> {
        let faults = self.shared.faults;
        let writes = request.direction == Direction::Write;
        let granted = if writes { self.shared.take_space(request.length) } else { request.length };
        let (length, fault) = if granted < request.length {
            self.shared.count(|counts| &mut counts.no_space);
            (granted, Some(libc::ENOSPC))
        } else if !self.shared.injecting() {
            (request.length, None)
        } else if self.random.chance(faults.transient) {
            self.shared.count(|counts| &mut counts.transient);
            (0, Some(if self.random.chance(500) { libc::EINTR } else { libc::EAGAIN }))
        } else if self.random.chance(faults.errors) {
            self.shared.count(|counts| &mut counts.errors);
            (self.random.below(request.length), Some(libc::EIO))
        } else {
            (request.length, None)
        };
        // Direct I/O moves whole pages.
        let length = if length == request.length { length } else { length - length % PAGE };
        if let Some(errno) = fault {
            if length > 0 {
                // SAFETY: fewer bytes of the same buffer. Whether they were moved is not told.
                let _ = unsafe { self.shared.transfer(&Request { length, ..request }) };
            }
            return Err(io::Error::from_raw_os_error(errno));
        }
        if request.length > PAGE && self.shared.injecting() && self.random.chance(faults.short) {
            let length = PAGE * (1 + self.random.below(request.length / PAGE));
            // SAFETY: at most as many bytes of the same buffer.
            let moved =
                unsafe { self.shared.transfer(&Request { length: length.min(request.length), ..request }) }?;
            // It may have moved more than it says, and what it says need not be whole pages.
            let said = moved - 512 * self.random.below(moved.div_ceil(512).min(8));
            if said < request.length {
                self.shared.count(|counts| &mut counts.short);
            }
            return Ok(said);
        }
        // SAFETY: the caller's promise.
        unsafe { self.shared.transfer(&request) }
    }
}

impl Drop for FaultyQueue {
    fn drop(&mut self) {
        // A real disk may or may not have got to what nobody waited for.
        for held in std::mem::take(&mut self.held) {
            if self.random.chance(500) {
                // SAFETY: the queue is still there, so `push`'s promise holds.
                let _ = unsafe { self.carry_out(held.request) };
            }
        }
    }
}

impl Shared {
    fn injecting(&self) -> bool {
        self.injecting.load(Ordering::Relaxed)
    }

    /// Writes down what the disk was told, if anybody wants to know.
    fn record(&self, event: impl FnOnce(&mut Journal)) {
        if let Some(journal) = &self.journal {
            event(&mut locked(journal));
        }
    }

    /// Moves a request's bytes and writes down what was written.
    ///
    /// # Safety
    /// As for [`Queue::push`].
    unsafe fn transfer(&self, request: &Request) -> io::Result<u32> {
        // SAFETY: the caller's promise.
        let moved = unsafe { transfer(request) }?;
        if request.direction == Direction::Write && self.journal.is_some() {
            // SAFETY: the caller vouches for that many bytes, which nobody changes, and `transfer` moved no more.
            let bytes = unsafe { std::slice::from_raw_parts(request.buffer, moved as usize) };
            // SAFETY: the caller vouches that the descriptor is open.
            let file = unsafe { BorrowedFd::borrow_raw(request.fd) };
            self.wrote(file, bytes, request.offset);
        }
        Ok(moved)
    }

    fn wrote(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.on(file, |journal, identity| journal.write(identity, offset, bytes));
    }

    /// Writes down what happened to an open file.
    fn on(&self, file: BorrowedFd<'_>, event: impl FnOnce(&mut Journal, (u64, u64))) {
        if let Ok(status) = Real.status(file) {
            self.record(|journal| event(journal, identity(status)));
        }
    }

    /// Writes down what happened to the file that has the name `name`.
    fn on_named(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        event: impl FnOnce(&mut Journal, (u64, u64)),
    ) {
        if let Ok(status) = Real.status_at(directory, name) {
            self.record(|journal| event(journal, identity(status)));
        }
    }

    fn count(&self, of: impl FnOnce(&mut FaultCounts) -> &mut u64) {
        *of(&mut locked(&self.counts)) += 1;
    }

    /// Takes `bytes` from the space that is left, or whatever is left.
    fn take_space(&self, bytes: u32) -> u32 {
        if !self.injecting() {
            return bytes;
        }
        let take = |left: u64| Some(left.saturating_sub(u64::from(bytes)));
        let left = self.space_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or(0);
        bytes.min(u32::try_from(left).unwrap_or(u32::MAX))
    }

    /// The fault of the next call in a file's life: one of `errnos`, the first of which is the usual one.
    fn fault(&self, errnos: &[Errno]) -> Option<Errno> {
        if !self.injecting() {
            return None;
        }
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut random = locked(&self.random);
        let errno = if self.faults.failing_call == Some(number) {
            errnos.first()
        } else if random.chance(self.faults.calls) {
            errnos.get(random.below(u32::try_from(errnos.len()).unwrap_or(1)) as usize)
        } else {
            None
        };
        if errno.is_some() {
            self.count(|counts| &mut counts.calls);
        }
        errno.copied()
    }

    fn call<T>(
        &self,
        errnos: &[Errno],
        real: impl FnOnce() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match self.fault(errnos) {
            Some(errno) => Err(errno),
            None => real(),
        }
    }

    /// As [`call`](Self::call) for a change of names, which may have happened although it is said to have failed, as
    /// on a network file system that lost the answer.
    fn change_names(
        &self,
        errnos: &[Errno],
        real: impl FnOnce() -> rustix::io::Result<()>,
    ) -> rustix::io::Result<()> {
        let Some(errno) = self.fault(errnos) else {
            return real();
        };
        if errno == Errno::IO && locked(&self.random).chance(500) {
            real()?;
        }
        Err(errno)
    }
}

/// The real calls: an overridden default method cannot be called otherwise.
struct Real;

impl Files for Real {}

const USUAL: &[Errno] = &[Errno::IO, Errno::INTR];
const NEEDS_SPACE: &[Errno] = &[Errno::IO, Errno::INTR, Errno::NOSPC, Errno::DQUOT];
const NEW_NAME: &[Errno] = &[Errno::IO, Errno::INTR, Errno::NOSPC, Errno::INVAL];

impl Files for Simulated {
    fn open_directory(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.shared.call(USUAL, || Real.open_directory(path))
    }

    fn create(&self, directory: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
        self.shared.call(NEEDS_SPACE, || {
            let file = Real.create(directory, name)?;
            self.shared.on(file.as_fd(), |journal, identity| journal.create(name, identity));
            Ok(file)
        })
    }

    fn open_existing(&self, directory: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
        self.shared.call(USUAL, || Real.open_existing(directory, name))
    }

    fn status(&self, file: BorrowedFd<'_>) -> rustix::io::Result<Stat> {
        let is_device = self.shared.device.is_some();
        self.shared.call(USUAL, || Real.status(file).map(|status| passing_for(is_device, status)))
    }

    fn status_at(&self, directory: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Stat> {
        self.shared.call(USUAL, || Real.status_at(directory, name))
    }

    fn status_of(&self, path: &Path) -> rustix::io::Result<Stat> {
        let is_device = self.shared.device.is_some() && self.shared.device.as_deref() == path.file_name();
        self.shared.call(USUAL, || Real.status_of(path).map(|status| passing_for(is_device, status)))
    }

    fn open_device(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.shared.call(USUAL, || Real.open_device(path))
    }

    fn is_read_only(&self, file: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        self.shared.call(USUAL, || Real.is_read_only(file))
    }

    fn is_locked(&self, file: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        self.shared.call(USUAL, || Real.is_locked(file))
    }

    fn length(&self, file: BorrowedFd<'_>) -> rustix::io::Result<u64> {
        self.shared.call(USUAL, || Real.length(file))
    }

    fn read_at(&self, file: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> rustix::io::Result<usize> {
        self.shared.call(USUAL, || Real.read_at(file, bytes, offset))
    }

    fn discard(&self, file: BorrowedFd<'_>, bytes: Range<u64>) -> rustix::io::Result<()> {
        self.shared.call(&[Errno::OPNOTSUPP, Errno::IO], || {
            let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            let bytes = place(bytes.start)..place(bytes.end);
            // Whatever is read there afterwards: a disk need not make it zeros.
            Real.write_at(file, &vec![0xdd; bytes.len()], bytes.start as u64)?;
            self.shared.on(file, |journal, identity| journal.discard(identity, bytes));
            Ok(())
        })
    }

    fn lock(&self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        self.shared.call(&[Errno::NOLCK, Errno::INTR], || Real.lock(file))
    }

    fn set_length(&self, file: BorrowedFd<'_>, bytes: u64) -> rustix::io::Result<()> {
        self.shared.call(NEEDS_SPACE, || {
            Real.set_length(file, bytes)?;
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            self.shared.on(file, |journal, identity| journal.set_length(identity, bytes));
            Ok(())
        })
    }

    fn set_direct(&self, file: BorrowedFd<'_>, direct: bool) -> rustix::io::Result<()> {
        self.shared.call(&[Errno::IO, Errno::INVAL], || Real.set_direct(file, direct))
    }

    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> rustix::io::Result<usize> {
        let granted = self.shared.take_space(u32::try_from(bytes.len()).unwrap_or(u32::MAX)) as usize;
        if granted == 0 && !bytes.is_empty() {
            self.shared.count(|counts| &mut counts.no_space);
            return Err(Errno::NOSPC);
        }
        let part = &bytes[..granted.min(bytes.len())];
        let half = &part[..part.len().div_ceil(2)];
        let write = |bytes: &[u8]| {
            let written = Real.write_at(file, bytes, offset)?;
            self.shared.wrote(file, &bytes[..written], offset);
            Ok(written)
        };
        match self.shared.fault(NEEDS_SPACE) {
            Some(Errno::INTR) => write(half),
            Some(errno) => {
                // Whether a part of it was written is not told.
                let _ = write(half);
                Err(errno)
            }
            None => write(part),
        }
    }

    fn sync_data(&self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        self.shared.call(NEEDS_SPACE, || {
            Real.sync_data(file)?;
            if !self.shared.faults.lying_syncs {
                self.shared.on(file, |journal, identity| journal.sync(identity));
            }
            Ok(())
        })
    }

    fn rename_over(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        self.shared.change_names(NEEDS_SPACE, || {
            Real.rename_over(directory, from, to)?;
            self.renamed(directory, from, to);
            Ok(())
        })
    }

    fn rename_new(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        self.shared.change_names(NEW_NAME, || {
            Real.rename_new(directory, from, to)?;
            self.renamed(directory, from, to);
            Ok(())
        })
    }

    fn link(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        self.shared.change_names(NEEDS_SPACE, || {
            Real.link(directory, from, to)?;
            self.shared.on_named(directory, to, |journal, identity| journal.name(to, identity));
            Ok(())
        })
    }

    fn unlink(&self, directory: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
        self.shared.call(USUAL, || {
            let status = Real.status_at(directory, name);
            Real.unlink(directory, name)?;
            if let Ok(status) = status {
                self.shared.record(|journal| journal.unname(name, identity(status)));
            }
            Ok(())
        })
    }

    fn sync_directory(&self, directory: BorrowedFd<'_>) -> rustix::io::Result<()> {
        self.shared.call(USUAL, || {
            Real.sync_directory(directory)?;
            self.shared.record(Journal::sync_directory);
            Ok(())
        })
    }
}

impl Simulated {
    fn renamed(&self, directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) {
        self.shared.on_named(directory, to, |journal, identity| {
            journal.name(to, identity);
            journal.unname(from, identity);
        });
    }
}

fn identity(status: Stat) -> (u64, u64) {
    (status.st_dev, status.st_ino)
}

/// `status`, or that of a block device.
fn passing_for(is_device: bool, mut status: Stat) -> Stat {
    if is_device {
        status.st_mode = FileType::BlockDevice.as_raw_mode();
    }
    status
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// splitmix64: small, and the same everywhere for ever.
#[derive(Debug)]
struct Random(u64);

impl Random {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::STEP);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 if that is 0.
    fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.next() % u64::from(limit.max(1))).unwrap_or(0)
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < per_mille
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_generator_is_splitmix64() {
        let mut random = Random(0);
        assert_eq!(random.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.next(), 0x6e78_9e6a_a1b9_65f4);
    }

    type Outcome = (u64, Result<u32, i32>);

    /// What a thousand reads come back as, in the order of their completion.
    fn outcomes(seed: u64, faults: Faults) -> (Vec<Outcome>, FaultCounts) {
        let pool = Pool::new(8, 64 << 10).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 64 << 10]).unwrap();
        let engine = Simulated::new(seed, faults);
        let mut queue = engine.queue(8, &pool).unwrap();
        let mut completions = Vec::new();
        for token in 0..1000 {
            let slot = usize::try_from(token % 8).unwrap();
            let (direction, fd, buffer) = (Direction::Read, file.as_raw_fd(), pool.slot(slot));
            let request = Request { token, direction, fd, offset: 0, buffer, length: 64 << 10 };
            while token - completions.len() as u64 == 8 {
                queue.wait(&mut completions).unwrap();
            }
            // SAFETY: pool and file outlive the queue; the requests read, and nobody looks at what they have read.
            unsafe { queue.push(request) }.unwrap();
        }
        while completions.len() < 1000 {
            queue.wait(&mut completions).unwrap();
        }
        let result = |result: io::Result<u32>| result.map_err(|cause| cause.raw_os_error().unwrap());
        (completions.into_iter().map(|c| (c.token, result(c.result))).collect(), engine.counts())
    }

    #[test]
    fn faults_follow_from_the_seed_and_are_counted() {
        let faults = Faults {
            errors: 50,
            short: 100,
            transient: 50,
            delayed: 100,
            reordered: true,
            ..Faults::default()
        };
        let (first, counts) = outcomes(1, faults);
        assert_eq!(outcomes(1, faults).0, first);
        assert_ne!(outcomes(2, faults).0, first);
        let number =
            |wanted: fn(&Result<u32, i32>) -> bool| first.iter().filter(|(_, r)| wanted(r)).count() as u64;
        assert_eq!(number(|result| *result == Err(libc::EIO)), counts.errors);
        assert_eq!(number(|result| matches!(result, Err(libc::EINTR | libc::EAGAIN))), counts.transient);
        assert_eq!(number(|result| matches!(result, Ok(moved) if *moved < 64 << 10)), counts.short);
        assert!(counts.errors > 0 && counts.transient > 0 && counts.short > 0 && counts.delayed > 0);
        assert!(first.windows(2).any(|pair| pair[0].0 > pair[1].0), "nothing was reordered");
    }

    #[test]
    fn without_faults_it_is_an_ordinary_engine() {
        let (plain, counts) = outcomes(1, Faults::default());
        assert_eq!(counts, FaultCounts::default());
        assert_eq!(plain, (0..1000).map(|token| (token, Ok(64 << 10))).collect::<Vec<_>>());
    }

    #[test]
    fn space_runs_out_after_its_budget() {
        let pool = Pool::new(1, 16 << 10).unwrap();
        let file = tempfile::tempfile().unwrap();
        let engine = Simulated::new(3, Faults { space_bytes: Some(20 << 10), ..Faults::default() });
        let mut queue = engine.queue(1, &pool).unwrap();
        let mut completions = Vec::new();
        for token in 0..2 {
            let (direction, fd, buffer) = (Direction::Write, file.as_raw_fd(), pool.slot(0));
            let request =
                Request { token, direction, fd, offset: token * (16 << 10), buffer, length: 16 << 10 };
            // SAFETY: pool and file outlive the queue, and nobody writes to the slot.
            unsafe { queue.push(request) }.unwrap();
            queue.wait(&mut completions).unwrap();
        }
        assert_eq!(completions[0].result.as_ref().unwrap(), &(16 << 10));
        assert_eq!(completions[1].result.as_ref().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(file.metadata().unwrap().len(), 20 << 10, "a part of the failed write is there");
        assert_eq!(engine.counts().no_space, 1);
    }
}
