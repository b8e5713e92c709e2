//! Where guest memory is and how its bytes are reached.
//!
//! A [`Memory`] is a list of blocks, each made of [`Region`]s. A region's bytes come from a file, from a range of a
//! process's address space, or from both: in a private mapping of a file the process holds the pages that it has
//! touched, and the file all others. Each such way of a region is a *source* with a number.

mod bus_error;
mod file;
mod file_system;
mod hugetlb;
mod mapping;
mod own_pages;
mod pagemap;
mod pidfd;
mod process;
mod region;
mod segment;
mod spans;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::OnceLock;

use crate::io::Direction;
use crate::{Error, ErrorKind, Result};
pub use file_system::FileSystem;
pub(crate) use hugetlb::obtainable_bytes;
use mapping::Mapping;
pub use own_pages::{Copying, OwnPages, PagesAt};
pub use pidfd::Pidfd;
pub use process::Process;
use region::Way;
pub use region::{Backing, FileRange, ProcessRange, Region};
use segment::Segment;

/// A run of a block's bytes that may hold data: page-aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, from the start of the block.
    pub offset: u64,
    /// Bytes, not 0.
    pub length: u64,
    /// Where they are to be read, for [`Memory::read`].
    pub source: u32,
}

/// A run of a block's bytes and its place in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First byte, from the start of the block.
    pub offset: u64,
    /// Bytes.
    pub length: usize,
    /// Where they are in the buffer.
    pub buffer_offset: usize,
}

/// A guest's RAM blocks and everything that is needed to read and write them.
///
/// Its methods may be called from several threads at once, on different bytes.
#[derive(Debug)]
pub struct Memory {
    blocks: Vec<u64>,
    /// Sorted by block and offset.
    regions: Vec<Region>,
    /// How long each region's file is to stay: as long as it was, as far as the region reaches. 0 without a file.
    file_lengths: Vec<u64>,
    /// Made when a region of shared hugetlbfs memory is first written; one place for each region.
    mappings: Vec<OnceLock<Mapping>>,
}

impl Memory {
    /// Blocks of the given lengths in bytes, made of `regions` in any order.
    ///
    /// # Errors
    /// `Usage` if the regions do not cover every block exactly once, or if a number is not page-aligned;
    /// `HostUnsupported` where the host's pages are of another size than ours; or whatever the kernel said of a file.
    pub fn new(block_lengths: Vec<u64>, mut regions: Vec<Region>) -> Result<Self> {
        crate::check_page_size()?;
        regions.sort_by_key(|region| (region.block, region.offset));
        for region in &regions {
            region.validate()?;
        }
        let mappings = regions.iter().map(|_| OnceLock::new()).collect();
        let file_lengths = regions.iter().map(Region::file_length).collect::<Result<_>>()?;
        let memory = Self { blocks: block_lengths, regions, file_lengths, mappings };
        for (block, &length) in memory.blocks.iter().enumerate() {
            memory.check_cover(block, length)?;
        }
        match memory.regions.last() {
            Some(last) if last.block >= memory.blocks.len() => {
                Err(usage(format!("a region belongs to block {}, which does not exist", last.block)))
            }
            _ => Ok(memory),
        }
    }

    fn check_cover(&self, block: usize, length: u64) -> Result<()> {
        let mut end = 0;
        for region in &self.regions[self.regions_of(block)] {
            if region.offset != end {
                return Err(usage(format!("block {block} is not covered exactly at offset {end}")));
            }
            end += region.length;
        }
        if end == length {
            Ok(())
        } else {
            Err(usage(format!("block {block} has {length} bytes, its regions {end}")))
        }
    }

    /// The blocks' lengths in bytes.
    #[must_use]
    pub fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// The regions, sorted by block and offset.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Learns whether this host's kernel can write to every kind of memory that is here. The rights to do so are not
    /// looked at.
    ///
    /// # Errors
    /// `HostUnsupported` if not.
    pub fn check_writable(&self) -> Result<()> {
        let by_mapping =
            |region: &Region| region.writable && matches!(region.backing, Backing::SharedHugetlb { .. });
        if self.regions.iter().any(by_mapping) { hugetlb::check_writable() } else { Ok(()) }
    }

    /// The parts of a block's bytes that may be written, ascending: all of them but what is mapped for reading only.
    pub fn writable_parts(&self, block: usize, bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let writable = self.regions[self.regions_of(block)].iter().filter(|region| region.writable);
        let part = move |region: &Region| {
            region.offset.max(bytes.start)..(region.offset + region.length).min(bytes.end)
        };
        writable.map(part).filter(|part| !part.is_empty())
    }

    /// Sets up what writing needs, so that it cannot fail for want of it once it has begun.
    ///
    /// # Errors
    /// The errno of mmap(2).
    pub fn prepare_to_write(&self) -> Result<()> {
        for (index, region) in self.regions.iter().enumerate().filter(|(_, region)| region.writable) {
            if let Backing::SharedHugetlb { file, .. } = &region.backing {
                self.mapping(index, file)?;
            }
        }
        Ok(())
    }

    /// Asks whether all that was written can still be there: what a file loses that is cut does not come back with its length.
    ///
    /// # Errors
    /// `Io`, naming the file that has become shorter since this memory was made.
    pub fn check_not_cut(&self) -> Result<()> {
        let mut writable = (0..self.regions.len()).filter(|index| self.regions[*index].writable);
        writable.try_for_each(|index| self.check_file_not_cut(index))
    }

    fn check_file_not_cut(&self, index: usize) -> Result<()> {
        let Some(file) = self.regions[index].backing.file() else { return Ok(()) };
        if file::length(&file.file)? >= self.file_lengths[index] {
            return Ok(());
        }
        let message = "the guest's memory has become shorter while it was restored";
        Err(file.name(Error::new(ErrorKind::Io, message)))
    }

    /// The block that a source belongs to; `None` if [`scan`](Self::scan) can never name that source.
    #[must_use]
    pub fn source_block(&self, source: u32) -> Option<usize> {
        let region = self.region_of(source)?;
        let by_process = source % 2 == Way::Process as u32;
        let exists =
            if by_process { region.backing.process().is_some() } else { region.backing.file().is_some() };
        exists.then_some(region.block)
    }

    /// The extents of a block that may hold data, ascending and disjoint; everything else reads zero.
    ///
    /// Allocates nothing in the guest and reads none of its bytes.
    ///
    /// # Errors
    /// `GuestGone`, or whatever the kernel said.
    pub fn scan(&self, block: usize) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        for index in self.regions_of(block) {
            let region = &self.regions[index];
            for (span, way) in region.data_spans(self)? {
                let (offset, length) = (region.offset + span.start, span.end - span.start);
                extents.push(Extent { offset, length, source: source_number(index, way)? });
            }
        }
        Ok(extents)
    }

    /// Reads `pieces` of one block into `buffer`, from the source that [`scan`](Self::scan) named for them; all
    /// of them or an error.
    ///
    /// # Errors
    /// `Usage` if a piece is not part of the source, `Io` if a file was cut since the scan, `GuestGone`, or whatever the kernel said.
    ///
    /// # Safety
    /// Every piece's part of `buffer` must be valid for writes, and nobody else may access it meanwhile.
    pub unsafe fn read(&self, source: u32, pieces: &[Piece], buffer: *mut u8) -> Result<()> {
        let unknown = || usage(format!("there is no source {source}"));
        let region = self.region_of(source).ok_or_else(unknown)?;
        if source % 2 == Way::Process as u32 {
            let ProcessRange { process, address } = region.backing.process().ok_or_else(unknown)?;
            let segments = region.segments(*address, pieces, buffer)?;
            // SAFETY: the segments are the pieces, for which the caller promises what is asked here.
            unsafe { process.transfer(Direction::Read, segments) }
        } else {
            let at = region.backing.file().ok_or_else(unknown)?;
            let segments = region.segments(at.offset, pieces, buffer)?;
            // SAFETY: the segments are the pieces, for which the caller promises what is asked here.
            unsafe { file::transfer(at, Direction::Read, segments) }
        }
    }

    /// Writes `pieces` of a block from `buffer`; all of them or an error.
    ///
    /// # Errors
    /// `Usage` if a piece is not part of the block or lies in memory that is mapped for reading only, `NoSpace` where a file
    /// system or the host's huge pages run out, `Io` if a file was cut, `GuestGone`, or whatever the kernel said.
    ///
    /// # Safety
    /// Every piece's part of `buffer` must be valid for reads, and nobody may write to it meanwhile.
    pub unsafe fn write(&self, block: usize, pieces: &[Piece], buffer: *const u8) -> Result<()> {
        for (index, pieces) in self.split(block, pieces)? {
            let region = &self.regions[index];
            region.check_writable()?;
            let segments = |base| region.segments(base, &pieces, buffer.cast_mut());
            let by_process = |mapped: &ProcessRange| {
                let segments = segments(mapped.address)?;
                // SAFETY: the segments are the pieces, for which the caller promises what is asked here.
                unsafe { mapped.process.transfer(Direction::Write, segments) }
            };
            match &region.backing {
                Backing::SharedFile { file, process } => {
                    // Writing would make a file that was cut longer again, and nobody could tell.
                    self.check_file_not_cut(index)?;
                    let by_file = |count| {
                        let first = segments(file.offset)?.into_iter().take(count).collect();
                        // SAFETY: as above.
                        unsafe { file::transfer(file, Direction::Write, first) }
                    };
                    match process.as_ref().map(by_process) {
                        None => by_file(usize::MAX),
                        // Where no page could be had, the file itself may say why. It is no way around: what it takes is
                        // charged to us.
                        Some(Err(error)) if process::is_fault(&error) => by_file(1).and(Err(error)),
                        Some(written) => written,
                    }
                }
                Backing::SharedHugetlb { file, .. } => {
                    let mapping = self.mapping(index, file)?;
                    // SAFETY: as above.
                    unsafe { mapping.write(segments(0)?) }
                }
                Backing::Anonymous(mapped) | Backing::PrivateFile { process: mapped, .. } => {
                    by_process(mapped)
                }
                Backing::PrivateHugetlb { process: mapped, .. } => by_process(mapped)
                    .map_err(|error| hugetlb::private_write_failure(error, region.page_bytes)),
            }?;
        }
        Ok(())
    }

    /// Where the kernel can put bytes of a block without a copy of ours: the address of `offset` in shared hugetlbfs memory,
    /// with the pages of all `length` bytes there. `None` for other memory: to map and pin pages of 4 KiB costs as much as
    /// to copy them (docs/performance.md).
    ///
    /// The address is valid as long as this memory is. Only the kernel may write there, for which a page that is gone is an
    /// error; a plain write would end the process by SIGBUS.
    ///
    /// # Errors
    /// `Usage` for memory that is mapped for reading only, `NoSpace` where the host's huge pages run out, or whatever the
    /// kernel said.
    pub fn direct_address(&self, block: usize, offset: u64, length: u64) -> Result<Option<*mut u8>> {
        let Some(index) = self.region_at(block, offset) else {
            return Ok(None);
        };
        let region = &self.regions[index];
        region.check_writable()?;
        match &region.backing {
            Backing::SharedHugetlb { file, .. } if length <= region.offset + region.length - offset => {
                let start = offset - region.offset;
                let mapping = self.mapping(index, file)?;
                mapping.populate(start..start + length)?;
                Ok(Some(mapping.address(start)))
            }
            _ => Ok(None),
        }
    }

    /// The pieces by region, cut where they cross from one into the next.
    fn split(&self, block: usize, pieces: &[Piece]) -> Result<Vec<(usize, Vec<Piece>)>> {
        let mut groups: Vec<(usize, Vec<Piece>)> = Vec::new();
        for &(mut piece) in pieces {
            while piece.length > 0 {
                let index = self.region_at(block, piece.offset).ok_or_else(|| {
                    usage(format!("block {block} has no {} bytes at offset {}", piece.length, piece.offset))
                })?;
                let region = &self.regions[index];
                let room = region.offset + region.length - piece.offset;
                let length = piece.length.min(usize::try_from(room).unwrap_or(usize::MAX));
                match groups.last_mut() {
                    Some((last, group)) if *last == index => group.push(Piece { length, ..piece }),
                    _ => groups.push((index, vec![Piece { length, ..piece }])),
                }
                piece.offset += length as u64;
                piece.buffer_offset += length;
                piece.length -= length;
            }
        }
        Ok(groups)
    }

    /// The region's own mapping of a hugetlbfs file, made when it is first asked for.
    fn mapping(&self, index: usize, file: &FileRange) -> Result<&Mapping> {
        let region = &self.regions[index];
        if let Some(mapping) = self.mappings[index].get() {
            return Ok(mapping);
        }
        let mapping = Mapping::new(region, file, Direction::Write)?;
        // Of two threads that come here at once, one drops its own again.
        Ok(self.mappings[index].get_or_init(|| mapping))
    }

    /// The region that holds a block's byte at `offset`.
    fn region_at(&self, block: usize, offset: u64) -> Option<usize> {
        let regions = self.regions_of(block);
        let is_before = |region: &Region| region.offset + region.length <= offset;
        let index = regions.start + self.regions[regions.clone()].partition_point(is_before);
        (index < regions.end).then_some(index)
    }

    fn regions_of(&self, block: usize) -> Range<usize> {
        let start = self.regions.partition_point(|region| region.block < block);
        let end = self.regions.partition_point(|region| region.block <= block);
        start..end
    }

    /// The region that a source belongs to.
    fn region_of(&self, source: u32) -> Option<&Region> {
        self.regions.get(usize::try_from(source / 2).ok()?)
    }
}

/// Each region has two numbers, whether it has both ways or not.
fn source_number(region: usize, way: Way) -> Result<u32> {
    u32::try_from(region * 2 + way as usize).map_err(|_| usage(format!("{region} regions are too many")))
}

fn usage(message: String) -> Error {
    Error::new(ErrorKind::Usage, message)
}
