//! Where the pages of each RAM block lie in an image.

use crate::error::require;
use crate::{PAGE_BYTES, Result};

/// Where the pages of one block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageArea {
    /// File offset of the block's page 0; page-aligned.
    pub offset: u64,
    /// Length of the block in bytes; a multiple of the page size.
    pub length: u64,
}

/// The page areas of all blocks of an image: aligned, apart from each other, and within the largest possible file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageAreas(Vec<PageArea>);

impl PageAreas {
    /// One area for each block, in the order of the blocks.
    ///
    /// # Errors
    /// `Usage` for areas that are not page-aligned, that end beyond the largest file, or that overlap.
    pub fn new(areas: Vec<PageArea>) -> Result<Self> {
        for (block, area) in areas.iter().enumerate() {
            let aligned = area.offset.is_multiple_of(PAGE_BYTES) && area.length.is_multiple_of(PAGE_BYTES);
            let end = area.offset.checked_add(area.length);
            let possible = aligned && end.is_some_and(|end| end <= i64::MAX.cast_unsigned());
            require(possible, || format!("RAM block {block} has no possible place in a file: {area:?}"))?;
        }
        let mut ordered: Vec<&PageArea> = areas.iter().filter(|area| area.length > 0).collect();
        ordered.sort_unstable_by_key(|area| area.offset);
        let overlap = ordered.windows(2).find(|pair| pair[0].offset + pair[0].length > pair[1].offset);
        require(overlap.is_none(), || format!("two RAM blocks overlap in the file: {overlap:?}"))?;
        Ok(Self(areas))
    }

    /// The areas in the order of the blocks.
    #[must_use]
    pub fn areas(&self) -> &[PageArea] {
        &self.0
    }

    /// The file offset of byte `offset` of a block.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn file_offset(&self, block: usize, offset: u64) -> u64 {
        self.0[block].offset + offset
    }

    /// The end of the last area in the file.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.0.iter().map(|area| area.offset + area.length).max().unwrap_or(0)
    }

    /// Checks that the areas are those of blocks with these lengths in bytes.
    ///
    /// # Errors
    /// `Usage`
    pub fn check_blocks(&self, lengths: &[u64]) -> Result<()> {
        let fit = self.0.iter().map(|area| area.length).eq(lengths.iter().copied());
        require(fit, || "the image's page areas are not those of the RAM blocks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn impossible_areas_are_refused() {
        let area = |offset, length| PageArea { offset, length };
        assert!(PageAreas::new(vec![area(8192, 4096), area(0, 8192), area(4096, 0)]).is_ok());
        for areas in [
            vec![area(1, 4096)],
            vec![area(0, 4095)],
            vec![area(u64::MAX - 4095, 4096)],
            vec![area(4096, 8192), area(8192, 4096)],
        ] {
            assert_eq!(PageAreas::new(areas).unwrap_err().kind, ErrorKind::Usage);
        }
    }
}
