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

/// Bytes in a target page. x86-64 and 4 KiB-page arm64 guests; the image format stores one bitmap bit for each.
pub const PAGE_BYTES: u64 = 4096;
