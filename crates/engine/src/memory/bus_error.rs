//! SIGBUS while mapped guest memory is read: an error of the save instead of the end of the process.
//!
//! A page of a shared mapping can be gone by the time it is read: the file may be cut, or the memory may turn out to be
//! damaged. The handler puts a page of zeros where the missing one was, so that the read goes on, and takes note. It acts only
//! on the addresses that the thread it runs on has named; everything else goes to whoever handled the signal before.

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;
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

/// Calls `read`, which may read the mapped `addresses`, whose memory is in pages of `page_bytes`; `Err` if one was missing,
/// and what `read` returned is wrong then.
pub(super) fn watched<T>(
    addresses: Range<usize>,
    page_bytes: usize,
    read: impl FnOnce() -> T,
) -> Result<T, ()> {
    BEFORE.get_or_init(install);
    let watch = Watch { start: addresses.start, end: addresses.end, page_bytes, was_missing: false };
    WATCH.set(Some(watch));
    let result = read();
    // What was read must be read before the watch ends, also in the eyes of the compiler.
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    match WATCH.take() {
        Some(Watch { was_missing: true, .. }) => Err(()),
        _ => Ok(result),
    }
}

/// Installs the handler and returns the one that was there. It stays: to take it away again could take away one that another
/// part of the process has put over it.
fn install() -> libc::sigaction {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
    // SAFETY: a sigaction of zeros is a valid one: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: as above.
    let mut before: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: both are valid sigactions, and the handler does only what a signal handler may.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
    before
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let told = unsafe { *info };
    // SAFETY: SIGBUS's siginfo has an address; what another process sends has some number there, which is compared only.
    let address = unsafe { told.si_addr() }.addr();
    let Ok(watch) = WATCH.try_with(Cell::get) else { return pass_on(signal, info, context) };
    let Some(mut watch) = watch.filter(|watch| (watch.start..watch.end).contains(&address)) else {
        return pass_on(signal, info, context);
    };
    let page = ptr::without_provenance_mut(address - address % watch.page_bytes);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the page belongs to the mapping that this thread has named, which is only read; replacing it by zeros takes
    // memory away from nobody. mmap is a mere system call here.
    let zeros = unsafe { libc::mmap(page, watch.page_bytes, libc::PROT_READ, flags, -1, 0) };
    if zeros == libc::MAP_FAILED {
        return pass_on(signal, info, context);
    }
    watch.was_missing = true;
    WATCH.set(Some(watch));
}

/// Hands the signal to whoever handled it before us; where nobody did, the default action follows when the read is tried again.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get();
    match before.map_or(libc::SIG_DFL, |action| action.sa_sigaction) {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: signal(2) may be called in a handler; the default action is one that every process has.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if before.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0) => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
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
