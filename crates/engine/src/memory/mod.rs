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
use crate::{Error, ErrorKind, Result, to_usize};
pub use file_system::FileSystem;
pub(crate) use hugetlb::obtainable_bytes;
use mapping::Mapping;
pub use own_pages::Copying;
pub(crate) use own_pages::OwnPages;
pub use pidfd::Pidfd;
pub use process::Process;
use region::{BY_FILE, WAYS, Way};
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

impl Extent {
    /// Its bytes, from the start of the block.
    #[must_use]
    pub fn bytes(&self) -> Range<u64> {
        self.offset..self.offset + self.length
    }
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
        let mut ends = vec![0; block_lengths.len()];
        for region in &regions {
            region.validate()?;
            let block = region.block;
            let missing = || Error::usage(format!("a region belongs to block {block}, which does not exist"));
            let end = ends.get_mut(block).ok_or_else(missing)?;
            if region.offset != *end {
                return Err(Error::usage(format!("block {block} is not covered exactly at offset {end}")));
            }
            *end += region.length;
        }
        for (block, (length, end)) in block_lengths.iter().zip(ends).enumerate() {
            if end != *length {
                return Err(Error::usage(format!("block {block} has {length} bytes, its regions {end}")));
            }
        }
        let mappings = regions.iter().map(|_| OnceLock::new()).collect();
        let file_lengths = regions.iter().map(Region::file_length).collect::<Result<_>>()?;
        Ok(Self { blocks: block_lengths, regions, file_lengths, mappings })
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
        let by_mapping = |region: &Region| {
            region.writable && region.is_hugetlb() && matches!(region.backing, Backing::Shared { .. })
        };
        match mapping::check_populate() {
            Err(errno) if self.regions.iter().any(by_mapping) => {
                let message = "writing to hugetlbfs needs MADV_POPULATE_WRITE, which came with Linux 5.14";
                Err(Error::os(message, errno).with_kind(ErrorKind::HostUnsupported))
            }
            _ => Ok(()),
        }
    }

    /// The parts of a block's bytes that may be written, ascending: all of them but what is mapped for reading only.
    pub fn writable_parts(&self, block: usize, bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let writable = self.regions[self.regions_of(block)].iter().filter(|region| region.writable);
        let part = move |region: &Region| region.offset.max(bytes.start)..region.end().min(bytes.end);
        writable.map(part).filter(|part| !part.is_empty())
    }

    /// Sets up what writing needs, so that it cannot fail for want of it once it has begun.
    ///
    /// # Errors
    /// The errno of mmap(2).
    pub fn prepare_to_write(&self) -> Result<()> {
        self.writable_regions().try_for_each(|index| self.mapping(index).map(drop))
    }

    /// Asks whether all that was written can still be there: what a file loses that is cut does not come back with its length.
    ///
    /// # Errors
    /// `Io`, naming the file that has become shorter since this memory was made.
    pub fn check_not_cut(&self) -> Result<()> {
        self.writable_regions().try_for_each(|index| self.check_file_not_cut(index))
    }

    fn writable_regions(&self) -> impl Iterator<Item = usize> {
        (0..self.regions.len()).filter(|index| self.regions[*index].writable)
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
        self.source(source).map(|(region, _)| region.block)
    }

    /// The region that a source belongs to, and the way to its bytes.
    fn source(&self, source: u32) -> Option<(&Region, Way<'_>)> {
        let region = self.regions.get(usize::try_from(source / WAYS).ok()?)?;
        let way = match &region.backing {
            backing if source % WAYS == BY_FILE => Way::File(backing.file()?),
            Backing::Private { process, .. } => Way::Process(process),
            Backing::Shared { .. } => return None,
        };
        Some((region, way))
    }

    /// The extents of a block that may hold data, ascending and disjoint; everything else reads zero.
    ///
    /// Allocates nothing in the guest and reads none of its bytes.
    ///
    /// # Errors
    /// `GuestGone`, or whatever the kernel said.
    pub fn scan(&self, block: usize) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        for index in self.regions_of(block) {
            let number = u32::try_from(index).ok().and_then(|index| index.checked_mul(WAYS));
            let first = number.ok_or_else(|| Error::usage(format!("{index} regions are too many")))?;
            extents.extend(self.regions[index].extents(self, first)?);
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
        let unknown = || Error::usage(format!("there is no source {source}"));
        let (region, way) = self.source(source).ok_or_else(unknown)?;
        let segments = |base| region.segments(base, pieces, buffer);
        match way {
            // SAFETY: the segments are the pieces, for which the caller promises what is asked here.
            Way::Process(at) => unsafe { at.process.transfer(Direction::Read, segments(at.address)?) },
            // SAFETY: as above.
            Way::File(file) => unsafe { file::transfer(file, Direction::Read, segments(file.offset)?) },
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
            if let Some(mapping) = self.mapping(index)? {
                // SAFETY: the segments are the pieces, for which the caller promises what is asked here.
                unsafe { mapping.write(segments(region.offset)?) }?;
                continue;
            }
            let by_process = |mapped: &ProcessRange| {
                // SAFETY: as above.
                unsafe { mapped.process.transfer(Direction::Write, segments(mapped.address)?) }
            };
            match &region.backing {
                Backing::Private { process, .. } => by_process(process)
                    .map_err(|error| hugetlb::private_write_failure(error, region.page_bytes)),
                Backing::Shared { file, process } => {
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
        let Some(index) = self.region_at(block, offset) else { return Ok(None) };
        let region = &self.regions[index];
        region.check_writable()?;
        let Some(mapping) = self.mapping(index)?.filter(|_| length <= region.end() - offset) else {
            return Ok(None);
        };
        mapping.populate(offset..offset + length)?;
        Ok(Some(mapping.address(offset)))
    }

    /// The pieces by region, cut where they cross from one into the next.
    fn split(&self, block: usize, pieces: &[Piece]) -> Result<Vec<(usize, Vec<Piece>)>> {
        let mut groups: Vec<(usize, Vec<Piece>)> = Vec::new();
        for &(mut piece) in pieces {
            while piece.length > 0 {
                let index = self.region_at(block, piece.offset).ok_or_else(|| {
                    Error::usage(format!(
                        "block {block} has no {} bytes at offset {}",
                        piece.length, piece.offset
                    ))
                })?;
                let length = piece.length.min(to_usize(self.regions[index].end() - piece.offset));
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

    /// Our own mapping of a region of shared hugetlbfs memory, made when it is first asked for; `None` for other memory.
    fn mapping(&self, index: usize) -> Result<Option<&Mapping>> {
        let (region, made) = (&self.regions[index], &self.mappings[index]);
        if let Backing::Shared { file, .. } = &region.backing
            && region.is_hugetlb()
            && made.get().is_none()
        {
            // Of two threads that come here at once, one drops its own again.
            let _ = made.set(Mapping::new(region, file, Direction::Write)?);
        }
        Ok(made.get())
    }

    /// The region that holds a block's byte at `offset`.
    fn region_at(&self, block: usize, offset: u64) -> Option<usize> {
        let is_before = |region: &Region| (region.block, region.end()) <= (block, offset);
        let index = self.regions.partition_point(is_before);
        (self.regions.get(index)?.block == block).then_some(index)
    }

    fn regions_of(&self, block: usize) -> Range<usize> {
        let start = self.regions.partition_point(|region| region.block < block);
        let end = self.regions.partition_point(|region| region.block <= block);
        start..end
    }
}
