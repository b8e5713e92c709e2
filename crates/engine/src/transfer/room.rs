//! Whether memory files on a tmpfs can take what a restore adds to them.

use std::collections::BTreeMap;

use rustix::fs::{fstat, fstatfs};

use super::check_bitmaps;
use crate::bitmap::{PageBitmap, PageRun};
use crate::memory::{Backing, Extent, FileRange, FileSystem, Memory, Region};
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

/// One tmpfs: what it has left and what is to be put into it.
struct Room<'a> {
    free_bytes: u64,
    needed_bytes: u64,
    file: &'a FileRange,
}

/// Asks whether every tmpfs of limited size that holds guest memory has room for the pages that the bitmaps mark and that
/// are not there yet. Without it a restore would fail in the middle, or the guest's process be killed by SIGBUS.
///
/// # Errors
/// `NoSpace` naming the file; `Usage` if the bitmaps are not those of the blocks.
pub fn require_room(memory: &Memory, bitmaps: &[PageBitmap]) -> Result<()> {
    check_bitmaps(memory, bitmaps)?;
    let mut rooms = BTreeMap::new();
    for region in memory.regions().iter().filter(|region| region.writable) {
        let Backing::SharedFile { file, .. } = &region.backing else { continue };
        let Some((device, free_bytes)) = limited_tmpfs(file)? else { continue };
        let room = rooms.entry(device).or_insert(Room { free_bytes, needed_bytes: 0, file });
        room.needed_bytes += missing_bytes(region, &bitmaps[region.block], &memory.scan(region.block)?);
    }
    match rooms.into_values().find(|room| room.needed_bytes > room.free_bytes) {
        Some(Room { free_bytes, needed_bytes, file }) => Err(file.name(Error::new(
            ErrorKind::NoSpace,
            format!(
                "the tmpfs of the guest's memory has room for {free_bytes} bytes more, and the image puts {needed_bytes} into it"
            ),
        ))),
        None => Ok(()),
    }
}

/// The file's tmpfs and what is free there; `None` for one without a limit, as a memfd's, and for other file systems.
fn limited_tmpfs(FileRange { file, .. }: &FileRange) -> Result<Option<(u64, u64)>> {
    let failure = |errno| Error::os("asking for the room of a memory file's file system failed", errno);
    let system = fstatfs(file).map_err(failure)?;
    if FileSystem::of(file)? != FileSystem::Tmpfs || system.f_blocks == 0 {
        return Ok(None);
    }
    let free_bytes = system.f_bfree.saturating_mul(system.f_bsize.cast_unsigned());
    Ok(Some((fstat(file).map_err(failure)?.st_dev, free_bytes)))
}

/// Bytes of marked pages of the region for which its file holds nothing yet.
fn missing_bytes(region: &Region, bitmap: &PageBitmap, extents: &[Extent]) -> u64 {
    let marked = |start: u64, end: u64| -> u64 {
        let pages =
            PageRun { first: start / PAGE_BYTES, count: end.saturating_sub(start).div_ceil(PAGE_BYTES) };
        bitmap.runs(pages, true).map(|run| run.count).sum()
    };
    let (start, end) = (region.offset, region.offset + region.length);
    let there: u64 = extents
        .iter()
        .map(|extent| marked(extent.offset.max(start), (extent.offset + extent.length).min(end)))
        .sum();
    marked(start, end).saturating_sub(there) * PAGE_BYTES
}
