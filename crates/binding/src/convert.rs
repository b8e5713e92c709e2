//! Numbers and plans between JavaScript and the engine.

use mapram_engine::bitmap::PageBitmap;
use mapram_engine::image::{self, PageAreas};
use mapram_engine::memory::{Copying, Extent};
use mapram_engine::transfer::{BlockPlan, Options};
use mapram_engine::{Error, PAGE_BYTES, Result};
use napi::bindgen_prelude::{Float64Array, Uint8Array};
use napi_derive::napi;

/// Largest integer that a JavaScript number holds exactly.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;
/// Numbers in one extent: offset, length, source.
const EXTENT_NUMBERS: usize = 3;

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
    /// Whether pages go through buffers of ours: `auto`, `always` or `never`.
    pub copy: String,
}

impl TransferOptions {
    pub(crate) fn options(&self) -> Options {
        Options { queue_depth: self.queue_depth, threads: thread_count(self.threads) }
    }

    pub(crate) fn chunk_bytes(&self) -> Result<u64> {
        integer(self.chunk_bytes, "chunkBytes")
    }

    pub(crate) fn copying(&self) -> Result<Copying> {
        match self.copy.as_str() {
            "auto" => Ok(Copying::Auto),
            "always" => Ok(Copying::Always),
            "never" => Ok(Copying::Never),
            other => Err(Error::usage(format!("copy is {other}, not auto, always or never"))),
        }
    }
}

/// Where a block's pages are in the image, in bytes.
#[napi(object)]
#[derive(Debug, Clone)]
pub struct PageArea {
    /// File offset of the block's page 0.
    pub pages_offset: f64,
    /// Used length of the block.
    pub length: f64,
}

/// What a transfer moves, and which channel moves what.
#[napi(object)]
pub struct TransferPlan {
    /// For each block, groups of three numbers: offset within the block, length, source.
    pub extents: Vec<Float64Array>,
    /// For each block, where one channel's part ends and the next one's begins: one number less than there are channels.
    pub splits: Vec<Float64Array>,
}

/// A JavaScript number as a byte count or an index.
pub(crate) fn integer(value: f64, what: &str) -> Result<u64> {
    if !(0.0..=MAX_SAFE_INTEGER).contains(&value) || value.fract() != 0.0 {
        return Err(Error::usage(format!("{what} is {value}, not a whole number of bytes")));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Ok(value as u64)
}

/// A count as a JavaScript number; counts beyond 2^53 do not occur, as nothing in memory or on disk is that large.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(crate) fn number(value: u64) -> f64 {
    value as f64
}

/// The index of a block as a JavaScript number.
pub(crate) fn index(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

pub(crate) fn thread_count(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

pub(crate) fn page_areas(from: &[PageArea]) -> Result<PageAreas> {
    let area = |area: &PageArea| {
        Ok(image::PageArea {
            offset: integer(area.pages_offset, "pagesOffset")?,
            length: integer(area.length, "length")?,
        })
    };
    PageAreas::new(from.iter().map(area).collect::<Result<_>>()?)
}

/// A bitmap that is too short would silently mean zero pages, so its length has to be right.
pub(crate) fn page_bitmaps(
    bitmaps: &[Uint8Array],
    lengths: impl IntoIterator<Item = u64>,
) -> Result<Vec<PageBitmap>> {
    let bitmap = |(bytes, length): (&Uint8Array, u64)| {
        let pages = length / PAGE_BYTES;
        if bytes.len() as u64 != pages.div_ceil(64) * 8 {
            return Err(Error::usage(format!(
                "a page bitmap of {} bytes is not that of {pages} pages",
                bytes.len()
            )));
        }
        Ok(PageBitmap::from_bytes(bytes, pages))
    };
    bitmaps.iter().zip(lengths).map(bitmap).collect()
}

pub(crate) fn blocks(from: &TransferPlan) -> Result<Vec<BlockPlan>> {
    if from.extents.len() != from.splits.len() {
        return Err(Error::usage("a plan has extents and splits for each block"));
    }
    let block = |(extents, splits): (&Float64Array, &Float64Array)| {
        let splits = splits.iter().map(|split| integer(*split, "split")).collect::<Result<_>>()?;
        Ok(BlockPlan { extents: self::extents(extents)?, splits })
    };
    from.extents.iter().zip(&from.splits).map(block).collect()
}

fn extents(numbers: &[f64]) -> Result<Vec<Extent>> {
    let (groups, rest) = numbers.as_chunks::<EXTENT_NUMBERS>();
    if !rest.is_empty() {
        return Err(Error::usage("a block's extents are not groups of three numbers"));
    }
    let extent = |&[offset, length, source]: &[f64; EXTENT_NUMBERS]| {
        Ok(Extent {
            offset: integer(offset, "offset")?,
            length: integer(length, "length")?,
            source: u32::try_from(integer(source, "source")?).unwrap_or(u32::MAX),
        })
    };
    groups.iter().map(extent).collect()
}
