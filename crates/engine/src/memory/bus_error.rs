//! SIGBUS while mapped guest memory is read or written: an error of the transfer instead of the end of the process.
//!
//! A page of a shared mapping can be gone by the time it is read: the file may be cut, or the memory may turn out to be
//! damaged. The handler puts a page of zeros where the missing one was, so that the read goes on, and takes note. It acts only
//! on the addresses that the thread it runs on has named; everything else goes to whoever handled the signal before.

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence};
use std::{mem, ptr};

/// The addresses that a thread reads, and whether one of them was missing.
#[derive(Debug, Clone, Copy)]
struct Watch {
    start: usize,
    end: usize,
    page_bytes: usize,
    was_missing: bool,
}

thread_local! {
    // Without a destructor and initialised at compile time, so that the handler may use it.
    static WATCH: Cell<Option<Watch>> = const { Cell::new(None) };
}

/// What handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Calls `touch`, which may read and write the mapped `addresses`, whose memory is in pages of `page_bytes`; `None` if one was
/// missing: what `touch` returned is wrong then, and what it wrote is lost.
pub(super) fn watched<T>(addresses: Range<usize>, page_bytes: usize, touch: impl FnOnce() -> T) -> Option<T> {
    BEFORE.get_or_init(install);
    let watch = Watch { start: addresses.start, end: addresses.end, page_bytes, was_missing: false };
    WATCH.set(Some(watch));
    // Everything is read, or written, while the watch is on, also in the eyes of the compiler.
    compiler_fence(Ordering::SeqCst);
    let result = touch();
    compiler_fence(Ordering::SeqCst);
    WATCH.take().filter(|watch| !watch.was_missing).map(|_| result)
}

/// Installs the handler and returns the one that was there. It stays: to take it away again could take away one that another
/// part of the process has put over it.
fn install() -> libc::sigaction {
    let handler: Handler = handle;
    // SAFETY: a sigaction of zeros is a valid one: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let mut before = action;
    // SAFETY: both are valid sigactions, and the handler does only what a signal handler may.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
    before
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let told = unsafe { *info };
    // SAFETY: SIGBUS's siginfo has an address; what another process sends has some number there, which is compared only.
    let address = unsafe { told.si_addr() }.addr();
    let watch = WATCH.try_with(Cell::get).ok().flatten();
    let Some(mut watch) = watch.filter(|watch| (watch.start..watch.end).contains(&address)) else {
        return pass_on(signal, info, context);
    };
    let page = ptr::without_provenance_mut(address - address % watch.page_bytes);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the page belongs to the mapping that this thread has named, and whose page is gone; another one in its place
    // takes memory away from nobody. mmap is a mere system call here.
    let zeros =
        unsafe { libc::mmap(page, watch.page_bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if zeros == libc::MAP_FAILED {
        return pass_on(signal, info, context);
    }
    watch.was_missing = true;
    WATCH.set(Some(watch));
}

/// Hands the signal to whoever handled it before us; where nobody did, it ends the process as it would have.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    match BEFORE.get().map_or(libc::SIG_DFL, |action| action.sa_sigaction) {
        // Sent by somebody rather than met by an access, which cannot be ignored.
        // SAFETY: the kernel passes a valid siginfo.
        libc::SIG_IGN if unsafe { (*info).si_code } <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: signal(2) may be called in a handler; the default action is one that every process has.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // SAFETY: raise(3) may be called in a handler; the signal is delivered when this one returns.
            unsafe { libc::raise(signal) };
        }
        handler if BEFORE.get().is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0) => {
            // SAFETY: whoever installed it with SA_SIGINFO gave a function of this type.
            let handler: Handler = unsafe { mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever installed it without SA_SIGINFO gave a function of this type.
            let handler: extern "C" fn(libc::c_int) = unsafe { mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::atomic::AtomicUsize;

    const ALONE: &str = "MAPRAM_TEST_ALONE";
    static SEEN: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn count(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        SEEN.fetch_add(1, Ordering::SeqCst);
    }

    /// What handles a signal is a process's, so each case runs in a process of its own.
    #[test]
    fn what_is_not_ours_goes_to_whoever_had_the_signal_before() {
        match std::env::var(ALONE).as_deref() {
            Ok("handler") => return handled(),
            Ok("default") => return by_default(),
            _ => {}
        }
        let run = |case| {
            let test = "memory::bus_error::tests::what_is_not_ours_goes_to_whoever_had_the_signal_before";
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args([test, "--exact", "--nocapture"]).env(ALONE, case).output().unwrap()
        };
        let handler = run("handler");
        assert!(handler.status.success(), "{}", String::from_utf8_lossy(&handler.stderr));
        let signal = std::os::unix::process::ExitStatusExt::signal(&run("default").status);
        assert_eq!(signal, Some(libc::SIGBUS));
    }

    fn handled() {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = count;
        // SAFETY: a sigaction of zeros is a valid one.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the action is valid, and its handler only counts.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
        assert_eq!(watched(0..4096, 4096, || 5), Some(5));
        for _ in 0..2 {
            // SAFETY: the signal is handled.
            unsafe { libc::raise(libc::SIGBUS) };
        }
        assert_eq!(SEEN.load(Ordering::SeqCst), 2);
    }

    fn by_default() {
        // SAFETY: the default action is one that every process has.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        assert_eq!(watched(0..4096, 4096, || 5), Some(5));
        // SAFETY: ends the process, which is what is tested.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}
