//! Numbers and plans between JavaScript and the engine.

use mapram_engine::io::{self, Io};
use mapram_engine::transfer::{Options, Place, Plan, Range};
use mapram_engine::{Error, ErrorKind, Result};
use napi::bindgen_prelude::Float64Array;
use napi_derive::napi;
use std::sync::Arc;

/// Largest integer that a JavaScript number holds exactly.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;
/// Numbers in one range of a channel: block, offset, length, source.
const RANGE_STRIDE: usize = 4;

/// How a transfer runs.
#[napi(object)]
#[derive(Debug, Clone)]
pub struct TransferOptions {
    /// Chunks in flight on each thread.
    pub queue_depth: u32,
    /// Threads.
    pub threads: u32,
    /// Largest request in bytes, a power of two.
    pub chunk_bytes: f64,
}

/// Where a block's pages are in the image, in bytes.
#[napi(object)]
#[derive(Debug, Clone)]
pub struct BlockPlace {
    /// File offset of the block's page 0.
    pub pages_offset: f64,
    /// Used length of the block.
    pub length: f64,
}

/// A JavaScript number as a byte count or an index.
pub(crate) fn integer(value: f64, what: &str) -> Result<u64> {
    if !(0.0..=MAX_SAFE_INTEGER).contains(&value) || value.fract() != 0.0 {
        return Err(Error::new(ErrorKind::Usage, format!("{what} is {value}, not a whole number of bytes")));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Ok(value as u64)
}

/// A count as a JavaScript number; counts beyond 2^53 do not occur, as nothing in memory or on disk is that large.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(crate) fn number(value: u64) -> f64 {
    value as f64
}

pub(crate) fn options(from: &TransferOptions) -> Options {
    Options { queue_depth: from.queue_depth, threads: usize::try_from(from.threads).unwrap_or(usize::MAX) }
}

pub(crate) fn places(from: &[BlockPlace]) -> Result<Vec<Place>> {
    let place = |place: &BlockPlace| {
        Ok(Place {
            pages_offset: integer(place.pages_offset, "pagesOffset")?,
            length: integer(place.length, "length")?,
        })
    };
    from.iter().map(place).collect()
}

pub(crate) fn plan(channels: &[Float64Array], options: &TransferOptions) -> Result<Plan> {
    let channel = |numbers: &Float64Array| {
        if !numbers.len().is_multiple_of(RANGE_STRIDE) {
            return Err(Error::new(ErrorKind::Usage, "a channel's ranges are not groups of four numbers"));
        }
        numbers.chunks_exact(RANGE_STRIDE).map(range).collect::<Result<Vec<Range>>>()
    };
    Ok(Plan {
        chunk_bytes: integer(options.chunk_bytes, "chunkBytes")?,
        channels: channels.iter().map(channel).collect::<Result<_>>()?,
    })
}

fn range(numbers: &[f64]) -> Result<Range> {
    let index = |at: usize, what| integer(numbers[at], what);
    Ok(Range {
        block: usize::try_from(index(0, "block")?).unwrap_or(usize::MAX),
        offset: index(1, "offset")?,
        length: index(2, "length")?,
        source: u32::try_from(index(3, "source")?).unwrap_or(u32::MAX),
    })
}

/// The engine that goes by `name`.
pub(crate) fn engine(name: &str) -> Result<Arc<dyn Io>> {
    io::by_name(name)
        .ok_or_else(|| Error::new(ErrorKind::Usage, format!("there is no I/O engine named {name}")))
}
