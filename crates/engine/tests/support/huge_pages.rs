//! Huge pages of 2 MiB that the host sets aside for a test.

/// Reserved for as long as it lives.
pub struct HugePages {
    got: u64,
}

pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

impl HugePages {
    const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

    /// `None`, said aloud, where the host does not give as many.
    pub fn reserve(count: u64) -> Option<Self> {
        let pages = Self::try_reserve(count);
        if pages.is_none() {
            eprintln!("SKIPPED: this host reserves no huge pages");
        }
        pages
    }

    fn try_reserve(count: u64) -> Option<Self> {
        let before = Self::read(Self::COUNT)?;
        std::fs::write(Self::COUNT, (before + count).to_string()).ok()?;
        let pages = Self { got: Self::read(Self::COUNT)?.saturating_sub(before) };
        (Self::free() >= count).then_some(pages)
    }

    /// Pages that are free now.
    pub fn free() -> u64 {
        Self::read(Self::FREE).unwrap()
    }

    fn read(path: &str) -> Option<u64> {
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // As many as came, not as many as there were: other tests reserve and give back meanwhile.
        let left = Self::read(Self::COUNT).unwrap().saturating_sub(self.got);
        std::fs::write(Self::COUNT, left.to_string()).unwrap();
    }
}
