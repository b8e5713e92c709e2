//! Moves guest memory to and from an image file.
//!
//! The engine knows memory ranges, file offsets and the image file's life. It knows nothing of QEMU, of image
//! headers or of Node: what goes where is decided by its caller and comes in as a [`transfer::Plan`].

pub mod bitmap;
pub mod error;
pub mod image;
pub mod io;
pub mod memory;
pub mod pool;
pub mod scan;
pub mod transfer;

pub use error::{Error, ErrorKind, Result};

/// Bytes in a page, the guest's and the host's ([`check_page_size`]); the image format stores one bitmap bit for each.
pub const PAGE_BYTES: u64 = PAGE as u64;

/// The same for lengths in memory.
pub(crate) const PAGE: usize = 4096;

/// Lengths in memory that the kernel or a check has shown to be possible always fit.
pub(crate) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Refuses a host whose pages are not of [`PAGE_BYTES`]: /proc/PID/pagemap has an entry for each of the host's pages, so larger ones would
/// be looked for in the wrong places, and silently lost.
///
/// # Errors
/// `HostUnsupported`.
pub fn check_page_size() -> Result<()> {
    // SAFETY: the call takes a number and touches no memory.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if page_bytes == PAGE as libc::c_long {
        return Ok(());
    }
    let message =
        format!("this host's pages are of {page_bytes} bytes, and mapram works with pages of {PAGE} only");
    Err(Error::new(ErrorKind::HostUnsupported, message))
}
