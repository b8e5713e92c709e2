//! The chunk buffers of one thread: a single anonymous mapping cut into equal slots.

use std::ptr;

use memmap2::{Advice, MmapMut, MmapRaw};

use crate::{Error, PAGE, Result};

const HUGE_PAGE: usize = 2 << 20;

/// Page-aligned memory for I/O, in huge pages where the host has them: fewer segments for each request.
///
/// The pool hands out raw addresses only. The kernel reads and writes a slot while requests on it are in flight, so
/// a Rust reference into it would be a lie; whoever uses a slot keeps track of who may touch it.
#[derive(Debug)]
pub struct Pool {
    mapping: MmapRaw,
    /// Where the first slot is in the mapping.
    start: usize,
    slots: usize,
    stride: usize,
}

impl Pool {
    /// A pool of `slots` slots of `slot_bytes` bytes each. A slot starts on a 2 MiB boundary if it is at least that
    /// large, else on a 4 KiB boundary.
    ///
    /// # Errors
    /// `Usage` for an empty or impossibly large pool, or the errno of mmap(2).
    pub fn new(slots: usize, slot_bytes: usize) -> Result<Self> {
        let alignment = |bytes| if bytes >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
        let stride = slot_bytes.checked_next_multiple_of(alignment(slot_bytes));
        let bytes = stride
            .and_then(|stride| stride.checked_mul(slots))
            .filter(|bytes| *bytes <= isize::MAX as usize / 2);
        let (Some(stride), Some(bytes @ 1..)) = (stride, bytes) else {
            return Err(Error::usage(format!(
                "a pool of {slots} buffers of {slot_bytes} bytes cannot be made"
            )));
        };
        // The first slot begins a huge page wherever one fits, whatever the slots need. These are transparent ones:
        // reserved ones (hugetlb) belong to the guests that the administrator set them aside for.
        let mapping: MmapRaw = MmapMut::map_anon(bytes + alignment(bytes))
            .map_err(|cause| Error::os(format!("allocating {bytes} bytes of I/O buffers failed"), cause))?
            .into();
        // A child that the embedder forks in the middle of a direct read would share these pages, and the rest of the
        // read could land in its copy.
        let _ = mapping.advise(Advice::DontFork);
        // Only speed is lost where the kernel has no transparent huge pages.
        let _ = mapping.advise(Advice::HugePage);
        let address = mapping.as_mut_ptr().addr();
        let start = address.next_multiple_of(alignment(bytes)) - address;
        Ok(Self { mapping, start, slots, stride })
    }

    /// Has the kernel give the pool its memory now rather than at its first use.
    ///
    /// # Safety
    /// No slot may hold anything yet.
    pub unsafe fn touch(&self) {
        for offset in (0..self.bytes()).step_by(PAGE) {
            // SAFETY: the byte lies within the mapping, and nobody uses it yet. The write is volatile as nobody reads it.
            unsafe { ptr::write_volatile(self.base().wrapping_add(offset), 0) };
        }
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes from the start of one slot to the start of the next: the slot's bytes and what aligns the next one.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The first byte of slot `index`, valid for the bytes of a slot as long as the pool lives.
    ///
    /// # Panics
    /// If there is no such slot.
    #[must_use]
    pub fn slot(&self, index: usize) -> *mut u8 {
        assert!(index < self.slots, "slot {index} of a pool of {}", self.slots);
        self.base().wrapping_add(index * self.stride)
    }

    /// The first byte of the pool.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.mapping.as_mut_ptr().wrapping_add(self.start)
    }

    /// Bytes from the first to the last, alignment between the slots included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.slots * self.stride
    }

    /// Whether all of the `length` bytes at `address` lie in the pool.
    #[must_use]
    pub fn contains(&self, address: *const u8, length: usize) -> bool {
        let within = address.addr().checked_sub(self.base().addr());
        within.and_then(|start| start.checked_add(length)).is_some_and(|end| end <= self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn slots_are_aligned_apart_and_writable() {
        for (slots, slot_bytes, alignment) in
            [(1, 1, PAGE), (7, 5000, PAGE), (3, 3 << 20, HUGE_PAGE), (8, 1 << 20, PAGE)]
        {
            let pool = Pool::new(slots, slot_bytes).unwrap();
            for index in 0..slots {
                let slot = pool.slot(index);
                assert_eq!(slot.addr() % alignment, 0);
                assert!(pool.contains(slot, slot_bytes));
                // SAFETY: the slot holds that many bytes and nothing else uses it.
                unsafe { ptr::write_bytes(slot, u8::try_from(index).unwrap() + 1, slot_bytes) };
            }
            for index in 0..slots {
                // SAFETY: written above, and nobody writes to it now.
                let bytes = unsafe { std::slice::from_raw_parts(pool.slot(index), slot_bytes) };
                assert!(bytes.iter().all(|byte| usize::from(*byte) == index + 1));
            }
        }
    }

    #[test]
    fn contains_refuses_what_reaches_outside() {
        let pool = Pool::new(2, PAGE).unwrap();
        let base = pool.base();
        assert!(pool.contains(base, 2 * PAGE));
        assert!(!pool.contains(base, 2 * PAGE + 1));
        assert!(!pool.contains(base.wrapping_sub(1), 1));
        assert!(!pool.contains(base, usize::MAX));
        assert!(!pool.contains(ptr::null(), 0));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (slots, slot_bytes) in [(0, PAGE), (1, 0), (usize::MAX, PAGE), (2, usize::MAX)] {
            assert_eq!(Pool::new(slots, slot_bytes).unwrap_err().kind, ErrorKind::Usage);
        }
    }
}
