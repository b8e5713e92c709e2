//! Whether the host's pages are of the size that everything here counts in.

use crate::{Error, ErrorKind, PAGE_BYTES, Result};

/// Refuses a host whose pages are not of [`PAGE_BYTES`]: /proc/PID/pagemap has an entry for each of the host's pages, so larger ones would
/// be looked for in the wrong places, and silently lost.
///
/// # Errors
/// `HostUnsupported`.
pub fn check_page_size() -> Result<()> {
    // SAFETY: the call takes a number and touches no memory.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if u64::try_from(page_bytes) == Ok(PAGE_BYTES) {
        return Ok(());
    }
    let message = format!(
        "this host's pages are of {page_bytes} bytes, and mapram works with pages of {PAGE_BYTES} only"
    );
    Err(Error::new(ErrorKind::HostUnsupported, message))
}
