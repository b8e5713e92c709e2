//! One contiguous copy between a buffer of ours and guest memory.

use std::fs::File;
use std::mem::MaybeUninit;
use std::slice;

use rustix::io::{pread, pwrite, retry_on_intr};

use crate::io::Direction;

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

    /// Reads from `file`, or writes to it, up to where the file ends or fails: what was not moved is left.
    ///
    /// # Safety
    /// The buffer must be valid for writes, and nobody else may access it meanwhile, to be read; to be written, it must be
    /// valid for reads, and nobody may write to it.
    pub unsafe fn transfer(&mut self, direction: Direction, file: &File) -> rustix::io::Result<()> {
        while self.length > 0 {
            let moved = match direction {
                Direction::Read => {
                    let buffer = self.buffer.cast::<MaybeUninit<u8>>();
                    // SAFETY: the caller lets these bytes be written and keeps everybody else away.
                    let bytes = unsafe { slice::from_raw_parts_mut(buffer, self.length) };
                    retry_on_intr(|| pread(file, &mut *bytes, self.at).map(|(read, _)| read.len()))?
                }
                Direction::Write => {
                    // SAFETY: the caller lets these bytes be read and lets nobody write to them.
                    let bytes = unsafe { slice::from_raw_parts(self.buffer, self.length) };
                    retry_on_intr(|| pwrite(file, bytes, self.at))?
                }
            };
            if moved == 0 {
                break;
            }
            self.advance(moved);
        }
        Ok(())
    }
}

/// What is done to guest memory, for messages.
pub(super) fn verb(direction: Direction) -> &'static str {
    match direction {
        Direction::Read => "reading",
        Direction::Write => "writing",
    }
}
