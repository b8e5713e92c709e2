//! Guest memory mapped by us for reading, so that the image is written from the guest's own pages, without a copy.

use std::ops::Range;

use super::mapping::{self, Mapping};
use super::{Backing, Extent, Memory, Process, Region, hugetlb, pagemap, spans};
use crate::io::Direction;
use crate::{Result, to_usize};

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
    /// For each region its mapping, if it is written from where it is, and whether only where it is dense: where zero pages are
    /// strewn among small ones, a copy is faster.
    regions: Vec<Option<(Mapping, bool)>>,
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
        if copying == Copying::Always || mapping::check_populate().is_err() {
            return Ok(Self { memory, regions: Vec::new() });
        }
        let map = |region: &Region| {
            // Nobody but its process can map private memory.
            let Backing::Shared { file, .. } = &region.backing else { return Ok(None) };
            // To look at a hole of hugetlbfs through a mapping would allocate it.
            if region.is_hugetlb() && !hugetlb::knows_its_pages(memory, &file.file)? {
                return Ok(None);
            }
            let mapping = Mapping::new(region, file, Direction::Read)?;
            let only_dense = copying == Copying::Auto
                && !region.is_hugetlb()
                && !is_in_huge_pages(&mapping, &samples(region, data(region.block)))?;
            Ok((takes_small_pages || !only_dense).then_some((mapping, only_dense)))
        };
        // A limit on addresses or descriptors, or a policy against mapping, is no reason not to save.
        let map = |region| match map(region) {
            Err(_) if copying == Copying::Auto => Ok(None),
            outcome => outcome,
        };
        let regions = memory.regions().iter().map(map).collect::<Result<_>>()?;
        Ok(Self { memory, regions })
    }

    /// Where all bytes of `span` of a block are mapped; `None` if they are to be copied. `is_dense` says whether few of the
    /// pages near there are zero.
    pub fn find(&self, block: usize, span: &Range<u64>, is_dense: bool) -> Option<&Mapping> {
        let index = self.memory.region_at(block, span.start)?;
        let (mapping, only_dense) = self.regions.get(index)?.as_ref()?;
        let is_whole = span.end <= self.memory.regions()[index].end();
        (is_whole && (is_dense || !only_dense)).then_some(mapping)
    }
}

/// Whether at least half of the samples, which hold data, are mapped in huge pages.
fn is_in_huge_pages(mapping: &Mapping, samples: &[Range<u64>]) -> Result<bool> {
    let own = Process::open(std::process::id().cast_signed())?;
    let mut huge = 0;
    for sample in samples {
        mapping.populate(sample.clone())?;
        let start = mapping.address(sample.start).addr() as u64;
        huge += pagemap::huge_bytes(&own, start..start + SAMPLE_BYTES);
    }
    Ok(!samples.is_empty() && huge >= spans::bytes(samples) / 2)
}

/// Places of a region that hold data: evenly spread over the extents that are large enough for a huge page.
fn samples(region: &Region, data: &[Extent]) -> Vec<Range<u64>> {
    let places_in = |extent: &Extent| {
        let start = extent.offset.max(region.offset).next_multiple_of(SAMPLE_BYTES);
        let end = (extent.offset + extent.length).min(region.end());
        (start..(end + 1).saturating_sub(SAMPLE_BYTES)).step_by(to_usize(SAMPLE_BYTES))
    };
    let places = || data.iter().flat_map(places_in);
    let step = (places().count() / SAMPLES).max(1);
    places().step_by(step).take(SAMPLES).map(|start| start..start + SAMPLE_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::FileRange;
    use crate::{ErrorKind, PAGE_BYTES};
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
        let backing = Backing::Shared { file: range, process: None };
        let region =
            Region { block: 0, offset: 0, length: LENGTH, backing, page_bytes: PAGE_BYTES, writable: false };
        (file, Memory::new(vec![LENGTH], vec![region]).unwrap())
    }

    fn first_byte(own: &OwnPages<'_>, extents: &[Extent], before: impl FnOnce()) -> Result<u8> {
        let span = extents[0].offset..LENGTH;
        let mapping = own.find(0, &span, true).unwrap();
        let address = mapping.address(span.start);
        mapping.look(span, extents, || {
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
        let second = &extents[1..];
        assert_eq!(first_byte(&own, second, || ()).unwrap(), 7);
        let cut = first_byte(&own, second, || file.set_len(8 * PAGE_BYTES).unwrap());
        assert_eq!(cut.unwrap_err().kind, ErrorKind::Io);
        let before_it_is_looked_at = first_byte(&own, second, || unreachable!("it is not there"));
        assert!(before_it_is_looked_at.unwrap_err().message.contains("taken away"));
        assert_eq!(first_byte(&own, &extents[..1], || ()).unwrap(), 7);
    }

    #[test]
    fn holes_stay_holes() {
        let (file, memory) = memory();
        let blocks = file.metadata().unwrap().blocks();
        let extents = memory.scan(0).unwrap();
        let own = OwnPages::new(&memory, Copying::Never, false, |_| &extents).unwrap();
        assert_eq!(first_byte(&own, &extents, || ()).unwrap(), 7);
        drop(own);
        assert_eq!(file.metadata().unwrap().blocks(), blocks);
    }

    #[test]
    fn what_crosses_the_end_of_a_region_is_copied() {
        let (_file, whole) = memory();
        let half = LENGTH / 2;
        let Backing::Shared { file, .. } = &whole.regions()[0].backing else { unreachable!() };
        let region = |offset| {
            let backing = Backing::Shared { file: FileRange { offset, ..file.clone() }, process: None };
            Region { offset, length: half, backing, ..whole.regions()[0].clone() }
        };
        let memory = Memory::new(vec![LENGTH], vec![region(0), region(half)]).unwrap();
        let own = OwnPages::new(&memory, Copying::Never, false, |_| &[]).unwrap();
        let is_mapped = |span| own.find(0, &span, true).is_some();
        assert!(is_mapped(0..half) && is_mapped(half..LENGTH));
        assert!(!is_mapped(0..half + PAGE_BYTES) && !is_mapped(half - PAGE_BYTES..LENGTH));
    }

    #[test]
    fn small_pages_are_mapped_only_where_that_is_wanted() {
        let (_file, memory) = memory();
        let extents = memory.scan(0).unwrap();
        let is_mapped = |copying, glad, is_dense| {
            let own = OwnPages::new(&memory, copying, glad, |_| &extents).unwrap();
            own.find(0, &(0..LENGTH), is_dense).is_some()
        };
        assert!(!is_mapped(Copying::Auto, false, true) && !is_mapped(Copying::Always, true, true));
        assert!(is_mapped(Copying::Auto, true, true) && !is_mapped(Copying::Auto, true, false));
        assert!(is_mapped(Copying::Never, false, true) && is_mapped(Copying::Never, false, false));
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
