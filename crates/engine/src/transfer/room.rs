//! Whether memory files on a tmpfs or hugetlbfs can take what a restore adds to them.

use std::collections::BTreeMap;

use rustix::fs::{fstat, fstatfs};

use super::plan::within;
use super::{check_bitmaps, to_usize};
use crate::bitmap::{PageBitmap, PageRun};
use crate::memory::{Backing, Extent, FileRange, FileSystem, Memory, Region, obtainable_bytes};
use crate::{Error, ErrorKind, PAGE_BYTES, Result};

/// One tmpfs, or the host's huge pages of one size: what is left and what is to be put there.
struct Room<'a> {
    name: &'static str,
    free_bytes: u64,
    needed_bytes: u64,
    file: &'a FileRange,
}

/// Asks whether every tmpfs of limited size that holds guest memory, and the host's huge pages, have room for the pages that
/// the bitmaps mark and that are not there yet. Without it a restore would fail in the middle, or the guest's process be killed
/// by SIGBUS.
///
/// # Errors
/// `NoSpace` naming the file; `Usage` if the bitmaps are not those of the blocks.
pub fn require_room(memory: &Memory, bitmaps: &[PageBitmap]) -> Result<()> {
    check_bitmaps(memory, bitmaps)?;
    let mut rooms = BTreeMap::new();
    for region in memory.regions().iter().filter(|region| region.writable) {
        let Backing::Shared { file, .. } = &region.backing else { continue };
        let (name, limit) = match region.page_bytes {
            PAGE_BYTES => ("the tmpfs of the guest's memory has", limited_tmpfs(file)?),
            bytes => ("the host's huge pages have", obtainable_bytes(bytes).map(|free| (0, free))),
        };
        let Some((device, free_bytes)) = limit else { continue };
        let key = (region.page_bytes, device);
        let room = rooms.entry(key).or_insert(Room { name, free_bytes, needed_bytes: 0, file });
        let (bitmap, extents) = (&bitmaps[region.block], memory.scan(region.block)?);
        room.needed_bytes += match region.page_bytes {
            PAGE_BYTES => missing_bytes(region, bitmap, &extents),
            _ => missing_huge_bytes(region, file.offset, bitmap, &extents),
        };
    }
    match rooms.into_values().find(|room| room.needed_bytes > room.free_bytes) {
        Some(Room { name, free_bytes, needed_bytes, file }) => Err(file.name(Error::new(
            ErrorKind::NoSpace,
            format!("{name} room for {free_bytes} bytes more, and the image puts {needed_bytes} there"),
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
    let marked = |bytes| -> u64 { bitmap.runs(PageRun::of(bytes), true).map(|run| run.length()).sum() };
    let whole = region.offset..region.offset + region.length;
    let there: u64 = within(extents, whole.clone()).map(|extent| marked(extent.bytes())).sum();
    marked(whole) - there
}

/// The same for huge pages, without those at the region's ends that are not all its own. What may be there counts as there.
fn missing_huge_bytes(region: &Region, file_offset: u64, bitmap: &PageBitmap, extents: &[Extent]) -> u64 {
    let page_bytes = region.page_bytes;
    let end = region.offset + region.length;
    let first = region.offset + (file_offset.next_multiple_of(page_bytes) - file_offset);
    let starts = (first..end).step_by(to_usize(page_bytes)).filter(|start| start + page_bytes <= end);
    let is_missing = |start: &u64| {
        let bytes = *start..start + page_bytes;
        within(extents, bytes.clone()).next().is_none()
            && bitmap.runs(PageRun::of(bytes), true).next().is_some()
    };
    starts.filter(is_missing).map(|_| page_bytes).sum()
}
