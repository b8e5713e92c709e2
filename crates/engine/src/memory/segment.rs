//! One contiguous copy between a buffer of ours and guest memory.

use std::mem::MaybeUninit;

/// A run of bytes in a file or address space, and the buffer that it goes to or comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// File offset or address.
    pub at: u64,
    /// First byte of the buffer.
    pub buffer: *mut u8,
    /// Bytes.
    pub length: usize,
}

impl Segment {
    /// Drops the first `count` bytes, which were moved; `count` must not exceed the length.
    pub fn advance(&mut self, count: usize) {
        self.at += count as u64;
        self.buffer = self.buffer.wrapping_add(count);
        self.length -= count;
    }

    /// The buffer, to be written.
    ///
    /// # Safety
    /// The buffer must be valid for writes, and nobody else may access it while the slice lives.
    pub unsafe fn uninit<'a>(&self) -> &'a mut [MaybeUninit<u8>] {
        // SAFETY: the caller promises just that, and bytes need neither alignment nor initialisation here.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.cast(), self.length) }
    }

    /// The buffer, to be read.
    ///
    /// # Safety
    /// The buffer must be valid for reads, and nobody may write to it while the slice lives.
    pub unsafe fn bytes<'a>(&self) -> &'a [u8] {
        // SAFETY: the caller promises just that, and bytes need no alignment.
        unsafe { std::slice::from_raw_parts(self.buffer, self.length) }
    }
}
