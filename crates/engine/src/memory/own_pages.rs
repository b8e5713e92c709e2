//! Guest memory mapped by us for reading, so that the image is written from the guest's own pages, without a copy.

use std::ops::Range;

use rustix::mm::{Advice, madvise};

use super::mapping::Mapping;
use super::{Backing, Extent, Memory, Process, Region, hugetlb, pagemap};
use crate::io::Direction;
use crate::{PAGE_BYTES, Result};

/// Whether a transfer copies guest memory through its buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Copying {
    /// Where that is faster: see docs/decisions/0002-copy-or-not.md.
    #[default]
    Auto,
    /// All of it.
    Always,
    /// Only what cannot be mapped: private memory.
    Never,
}

/// What is looked at to learn whether shared memory is in huge pages: so many places, each as large as a huge page.
const SAMPLES: usize = 16;
const SAMPLE_BYTES: u64 = 2 << 20;

/// Our own mappings of the regions that are written from where they are.
#[derive(Debug)]
pub struct OwnPages<'a> {
    memory: &'a Memory,
    /// One place for each region.
    mappings: Vec<Option<Mapping>>,
}

impl<'a> OwnPages<'a> {
    /// Maps what is not to be copied. `data` are runs of bytes of each block that are known to be there, ascending;
    /// `takes_small_pages` says whether the image's device takes requests of many 4 KiB segments as gladly as of few large
    /// ones.
    ///
    /// # Errors
    /// With [`Copying::Never`], the errno of mmap(2). With [`Copying::Auto`], what cannot be mapped is copied.
    pub fn new<'d>(
        memory: &'a Memory,
        copying: Copying,
        takes_small_pages: bool,
        data: impl Fn(usize) -> &'d [Extent],
    ) -> Result<Self> {
        let none = Self { memory, mappings: Vec::new() };
        if copying == Copying::Always || !can_populate() {
            return Ok(none);
        }
        let map = |region: &Region| {
            if !is_known(memory, region)? {
                return Ok(None);
            }
            let (Backing::SharedFile { file, .. } | Backing::SharedHugetlb { file, .. }) = &region.backing
            else {
                // Nobody but its process can map private memory.
                return Ok(None);
            };
            let mapping = Mapping::new(region, file, Direction::Read)?;
            let is_wanted = copying == Copying::Never
                || takes_small_pages
                || region.page_bytes > PAGE_BYTES
                || is_in_huge_pages(&mapping, &samples(region, data(region.block)))?;
            Ok(is_wanted.then_some(mapping))
        };
        // A limit on addresses or descriptors, or a policy against mapping, is no reason not to save.
        let map = |region| match map(region) {
            Err(_) if copying == Copying::Auto => Ok(None),
            outcome => outcome,
        };
        let mappings = memory.regions().iter().map(map).collect::<Result<_>>()?;
        Ok(Self { mappings, ..none })
    }

    /// Where the bytes from `span.start` to `span.end` of a block are mapped; `None` if they are to be copied.
    pub fn find(&self, block: usize, span: Range<u64>) -> Option<PagesAt<'_>> {
        let index = self.memory.region_at(block, span.start)?;
        let mapping = self.mappings.get(index)?.as_ref()?;
        let region = &self.memory.regions()[index];
        (span.end <= region.offset + region.length).then_some(PagesAt {
            mapping,
            start: span.start,
            within: span.start - region.offset,
        })
    }
}

/// A run of a block's bytes in one of our mappings.
#[derive(Debug, Clone, Copy)]
pub struct PagesAt<'a> {
    mapping: &'a Mapping,
    /// First byte, from the start of the block.
    start: u64,
    /// The same from the start of the region.
    within: u64,
}

impl PagesAt<'_> {
    /// The address of the first byte, valid as long as the mapping is there.
    pub fn address(&self) -> *mut u8 {
        self.mapping.address(self.within)
    }

    /// Makes the pages of `extents`, which are known to be there, present in our mapping, and calls `look`, which may read
    /// their bytes. Holes between them are left alone: to touch one would allocate it.
    ///
    /// # Errors
    /// `Io` for a page that is damaged or was taken away; whatever `look` has found is wrong then.
    pub fn look<T>(&self, extents: &[Extent], look: impl FnOnce() -> T) -> Result<T> {
        for extent in extents {
            let start = self.within + (extent.offset - self.start);
            self.mapping.populate(start..start + extent.length)?;
        }
        let last = extents.last().map_or(self.start, |extent| extent.offset + extent.length);
        self.mapping.watched(self.within..self.within + (last - self.start), look)
    }
}

/// Whether at least half of the samples, which hold data, are mapped in huge pages.
fn is_in_huge_pages(mapping: &Mapping, samples: &[Range<u64>]) -> Result<bool> {
    let own = Process::open(std::process::id().cast_signed())?;
    let (mut huge, mut all) = (0, 0);
    for sample in samples {
        mapping.populate(sample.clone())?;
        let start = mapping.address(sample.start).addr() as u64;
        huge += pagemap::huge_bytes(&own, start..start + (sample.end - sample.start));
        all += sample.end - sample.start;
    }
    Ok(all > 0 && huge >= all / 2)
}

/// Places of a region that hold data, from its start: evenly spread over the extents that are large enough for a huge page.
fn samples(region: &Region, data: &[Extent]) -> Vec<Range<u64>> {
    let end = region.offset + region.length;
    let large = data.iter().filter_map(|extent| {
        let start = extent.offset.max(region.offset).next_multiple_of(SAMPLE_BYTES);
        let last = (extent.offset + extent.length).min(end).checked_sub(SAMPLE_BYTES)?;
        (start <= last).then(|| (start, (last - start) / SAMPLE_BYTES + 1))
    });
    let large: Vec<(u64, u64)> = large.collect();
    let count: u64 = large.iter().map(|(_, count)| count).sum();
    let step = (count / SAMPLES as u64).max(1);
    let mut found = Vec::new();
    let mut passed = 0_u64;
    for (start, count) in large {
        // The first place of this extent that is a multiple of `step` in the line of all.
        let mut place = passed.next_multiple_of(step) - passed;
        while place < count && found.len() < SAMPLES {
            let offset = start + place * SAMPLE_BYTES - region.offset;
            found.push(offset..offset + SAMPLE_BYTES);
            place += step;
        }
        passed += count;
    }
    found
}

/// Whether the data of the region is known exactly: to look at a hole of hugetlbfs through a mapping would allocate it.
fn is_known(memory: &Memory, region: &Region) -> Result<bool> {
    match &region.backing {
        Backing::SharedHugetlb { file, .. } => hugetlb::knows_its_pages(memory, &file.file),
        _ => Ok(true),
    }
}

/// Whether this kernel (5.14) can say what is wrong with a page before it is touched.
fn can_populate() -> bool {
    // SAFETY: the range is empty, and an unknown advice is refused before it is looked at.
    unsafe { madvise(std::ptr::null_mut(), 0, Advice::LinuxPopulateRead) }.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::memory::FileRange;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::sync::Arc;

    const LENGTH: u64 = 8 << 20;

    /// Memory of one block: pages 0 to 7 and 1024 to 1031 of a memfd, the rest holes.
    fn memory() -> (Arc<File>, Memory) {
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = Arc::new(File::from(file));
        file.set_len(LENGTH).unwrap();
        for page in [0, 1024] {
            file.write_all_at(&[7; 8 * 4096], page * PAGE_BYTES).unwrap();
        }
        let range = FileRange { file: Arc::clone(&file), path: None, offset: 0 };
        let backing = Backing::SharedFile { file: range, process: None };
        let region =
            Region { block: 0, offset: 0, length: LENGTH, backing, page_bytes: PAGE_BYTES, writable: false };
        (file, Memory::new(vec![LENGTH], vec![region]).unwrap())
    }

    fn first_byte(pages: PagesAt<'_>, extents: &[Extent], before: impl FnOnce()) -> Result<u8> {
        let address = pages.address();
        pages.look(extents, || {
            before();
            // SAFETY: the address is mapped; if its page is gone, that is what is tested.
            unsafe { address.read_volatile() }
        })
    }

    #[test]
    fn what_was_taken_away_is_an_error_and_not_the_end() {
        let (file, memory) = memory();
        let extents = memory.scan(0).unwrap();
        let own = OwnPages::new(&memory, Copying::Never, false, |_| &extents).unwrap();
        let find = |extents: &[Extent]| own.find(0, extents[0].offset..LENGTH).unwrap();
        let second = &extents[1..];
        assert_eq!(first_byte(find(second), second, || ()).unwrap(), 7);
        let cut = first_byte(find(second), second, || file.set_len(8 * PAGE_BYTES).unwrap());
        assert_eq!(cut.unwrap_err().kind, ErrorKind::Io);
        let before_it_is_looked_at = first_byte(find(second), second, || unreachable!("it is not there"));
        assert!(before_it_is_looked_at.unwrap_err().message.contains("taken away"));
        assert_eq!(first_byte(find(&extents), &extents[..1], || ()).unwrap(), 7);
    }

    #[test]
    fn holes_stay_holes() {
        let (file, memory) = memory();
        let blocks = file.metadata().unwrap().blocks();
        let extents = memory.scan(0).unwrap();
        let own = OwnPages::new(&memory, Copying::Never, false, |_| &extents).unwrap();
        assert_eq!(first_byte(own.find(0, 0..LENGTH).unwrap(), &extents, || ()).unwrap(), 7);
        drop(own);
        assert_eq!(file.metadata().unwrap().blocks(), blocks);
    }

    #[test]
    fn small_pages_are_mapped_only_where_that_is_wanted() {
        let (_file, memory) = memory();
        let extents = memory.scan(0).unwrap();
        let is_mapped = |copying, glad| {
            let own = OwnPages::new(&memory, copying, glad, |_| &extents).unwrap();
            own.find(0, 0..LENGTH).is_some()
        };
        assert!(!is_mapped(Copying::Auto, false) && !is_mapped(Copying::Always, true));
        assert!(is_mapped(Copying::Auto, true) && is_mapped(Copying::Never, false));
    }

    #[test]
    fn samples_are_whole_places_of_data_all_over_the_region() {
        let (_file, memory) = memory();
        let region = &memory.regions()[0];
        let extent = |offset, length| Extent { offset, length, source: 0 };
        assert!(samples(region, &[extent(0, 1 << 20), extent(4096, SAMPLE_BYTES)]).is_empty());
        let long = Region { length: 1 << 30, ..region.clone() };
        let found = samples(&long, &[extent(0, 100 << 20), extent(200 << 20, 900 << 20)]);
        assert_eq!(found.len(), SAMPLES);
        assert!(
            found.iter().all(|sample| sample.end - sample.start == SAMPLE_BYTES && sample.end <= 1 << 30)
        );
        assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(found.last().unwrap().start > 800 << 20);
    }
}
