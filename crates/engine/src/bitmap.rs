//! A block's page bitmap as the image stores it: bit *i* is page *i*, least significant bit of byte 0 first.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{PAGE_BYTES, to_usize};

/// One bit for each page of a RAM block; set means that the image holds the page, clear that it reads zero.
///
/// Bits are set by several threads at once, hence the atomics; the words order nothing, joining the threads does.
#[derive(Debug)]
pub struct PageBitmap {
    words: Vec<AtomicU64>,
    pages: u64,
}

/// A run of pages with equal bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// First page of the run.
    pub first: u64,
    /// Pages in the run, at least 1.
    pub count: u64,
}

impl PageRun {
    /// The pages of `bytes`, which start and end with a page.
    #[must_use]
    pub fn of(bytes: Range<u64>) -> Self {
        Self { first: bytes.start / PAGE_BYTES, count: (bytes.end - bytes.start) / PAGE_BYTES }
    }

    /// The page behind the last one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> Range<u64> {
        self.first * PAGE_BYTES..self.end() * PAGE_BYTES
    }

    /// How many bytes that are.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.count * PAGE_BYTES
    }
}

const WORD_BITS: u64 = 64;

impl PageBitmap {
    /// A bitmap of `pages` clear bits.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        let words = (0..pages.div_ceil(WORD_BITS)).map(|_| AtomicU64::new(0)).collect();
        Self { words, pages }
    }

    /// The bitmap stored in `bytes` (little-endian, `8 * ceil(pages / 64)` bytes; missing words count as zero, bits
    /// at and beyond `pages` are dropped).
    #[must_use]
    pub fn from_bytes(bytes: &[u8], pages: u64) -> Self {
        let bitmap = Self::new(pages);
        for (word, bytes) in bitmap.words.iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        if let (Some(last), tail @ 1..) = (bitmap.words.last(), pages % WORD_BITS) {
            last.fetch_and((1 << tail) - 1, Ordering::Relaxed);
        }
        bitmap
    }

    /// The bytes that the image stores.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Sets the bits of `run`; pages beyond the bitmap are ignored.
    pub fn set(&self, run: PageRun) {
        self.change(run, |word, mask| word.fetch_or(mask, Ordering::Relaxed));
    }

    /// Clears the bits of `run`; pages beyond the bitmap are ignored.
    pub fn clear(&self, run: PageRun) {
        self.change(run, |word, mask| word.fetch_and(!mask, Ordering::Relaxed));
    }

    fn change(&self, run: PageRun, change: impl Fn(&AtomicU64, u64) -> u64) {
        let end = run.end().min(self.pages);
        let mut page = run.first;
        while page < end {
            let bit = page % WORD_BITS;
            let count = (WORD_BITS - bit).min(end - page);
            let mask = (u64::MAX >> (WORD_BITS - count)) << bit;
            change(self.word(page), mask);
            page += count;
        }
    }

    /// The maximal runs of bits equal to `set` within `range` of pages, ascending.
    pub fn runs(&self, range: PageRun, set: bool) -> impl Iterator<Item = PageRun> + '_ {
        let end = range.end().min(self.pages);
        let mut next = range.first;
        std::iter::from_fn(move || {
            let first = self.find(next, end, set);
            if first >= end {
                return None;
            }
            next = self.find(first, end, !set);
            Some(PageRun { first, count: next - first })
        })
    }

    /// The first page at or after `from` whose bit equals `set`, or `end`.
    fn find(&self, from: u64, end: u64, set: bool) -> u64 {
        let mut page = from;
        while page < end {
            let value = self.word(page).load(Ordering::Relaxed);
            let wanted = (if set { value } else { !value }) >> (page % WORD_BITS);
            if wanted != 0 {
                return (page + u64::from(wanted.trailing_zeros())).min(end);
            }
            page = (page / WORD_BITS + 1) * WORD_BITS;
        }
        end
    }

    fn word(&self, page: u64) -> &AtomicU64 {
        &self.words[to_usize(page / WORD_BITS)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_runs(bits: &[bool], first: usize, end: usize, set: bool) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for (page, _) in bits.iter().enumerate().take(end).skip(first).filter(|(_, bit)| **bit == set) {
            match runs.last_mut() {
                Some(run) if run.first + run.count == page as u64 => run.count += 1,
                _ => runs.push(PageRun { first: page as u64, count: 1 }),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn runs_equal_the_naive_oracle(
            bits in prop::collection::vec(any::<bool>(), 0..400), first in 0_usize..400, count in 0_usize..400, set: bool,
        ) {
            let bitmap = PageBitmap::new(bits.len() as u64);
            for (page, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
                bitmap.set(PageRun { first: page as u64, count: 1 });
            }
            let found: Vec<_> = bitmap.runs(PageRun { first: first as u64, count: count as u64 }, set).collect();
            prop_assert_eq!(found, naive_runs(&bits, first, first + count, set));
        }

        #[test]
        fn cleared_bits_are_those_of_the_run(pages in 1_u64..300, first in 0_u64..300, count in 0_u64..300) {
            let bitmap = PageBitmap::new(pages);
            bitmap.set(PageRun { first: 0, count: pages });
            bitmap.clear(PageRun { first, count });
            let cleared = (first + count).min(pages).saturating_sub(first);
            let left: u64 = bitmap.runs(PageRun { first: 0, count: pages }, true).map(|run| run.count).sum();
            prop_assert_eq!(left, pages - cleared);
            prop_assert_eq!(bitmap.runs(PageRun { first, count }, true).count(), 0);
        }

        #[test]
        fn bytes_round_trip(pages in 0_u64..300, first in 0_u64..300, count in 0_u64..300) {
            let bitmap = PageBitmap::new(pages);
            bitmap.set(PageRun { first, count });
            let bytes = bitmap.to_bytes();
            prop_assert_eq!(bytes.len() as u64, pages.div_ceil(64) * 8);
            prop_assert_eq!(PageBitmap::from_bytes(&bytes, pages).to_bytes(), bytes);
        }
    }

    #[test]
    fn bits_beyond_the_last_page_are_dropped() {
        assert_eq!(PageBitmap::from_bytes(&[0xff; 8], 3).to_bytes(), [7, 0, 0, 0, 0, 0, 0, 0]);
    }
}
