//! Finding zero pages in memory that was already read.

use crate::PAGE;
use crate::bitmap::PageRun;

/// Bytes that are combined before the scan looks whether to stop: four cache lines.
const STRIDE: usize = 256;

/// Whether all `bytes` are zero.
///
/// Three bytes are looked at first: most pages that hold data end there, having cost a cache line or two.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (Some(first), Some(middle), Some(last)) = (bytes.first(), bytes.get(bytes.len() / 2), bytes.last())
    else {
        return true;
    };
    if first | middle | last != 0 {
        return false;
    }
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    strides.iter().all(|stride| combined(stride) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// All bits of `stride` that are set anywhere; the compiler makes vector instructions of it.
#[inline]
fn combined(stride: &[u8; STRIDE]) -> u64 {
    let (words, _) = stride.as_chunks::<8>();
    words.iter().fold(0, |bits, word| bits | u64::from_ne_bytes(*word))
}

/// Hands every maximal run of pages of `buffer` that are not all zero to `found`, ascending.
///
/// The first page of `buffer` has the number `first_page`. A last part shorter than a page counts as a page.
pub fn nonzero_runs(buffer: &[u8], first_page: u64, mut found: impl FnMut(PageRun)) {
    let mut run = PageRun { first: first_page, count: 0 };
    for bytes in buffer.chunks(PAGE) {
        if !is_zero(bytes) {
            run.count += 1;
            continue;
        }
        if run.count > 0 {
            found(run);
        }
        run = PageRun { first: run.end() + 1, count: 0 };
    }
    if run.count > 0 {
        found(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn one_byte_anywhere_is_found(length in 1_usize..5000, at in any::<prop::sample::Index>(), value in 1_u8..) {
            let mut bytes = vec![0; length];
            prop_assert!(is_zero(&bytes));
            bytes[at.index(length)] = value;
            prop_assert!(!is_zero(&bytes));
        }

        #[test]
        fn runs_equal_the_naive_oracle(
            pages in prop::collection::vec(any::<bool>(), 0..40), tail in 0_usize..PAGE, first in 0_u64..1 << 40,
            at in any::<prop::sample::Index>(),
        ) {
            let mut buffer = vec![0; pages.len() * PAGE + tail];
            for (page, _) in pages.iter().enumerate().filter(|(_, data)| **data) {
                buffer[page * PAGE + at.index(PAGE)] = 1;
            }
            let mut found = Vec::new();
            nonzero_runs(&buffer, first, |run| found.push(run));
            let mut naive: Vec<PageRun> = Vec::new();
            for page in (0_u64..).zip(&pages).filter(|(_, data)| **data).map(|(page, _)| first + page) {
                match naive.last_mut() {
                    Some(run) if run.first + run.count == page => run.count += 1,
                    _ => naive.push(PageRun { first: page, count: 1 }),
                }
            }
            prop_assert_eq!(found, naive);
        }
    }
}
