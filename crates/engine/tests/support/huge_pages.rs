//! Huge pages of 2 MiB that the host sets aside for a test.

/// Reserved for as long as it lives.
pub struct HugePages {
    before: String,
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
        let before = std::fs::read_to_string(Self::COUNT).ok()?;
        let wanted = before.trim().parse::<u64>().ok()? + count;
        let pages = Self { before };
        std::fs::write(Self::COUNT, wanted.to_string()).ok()?;
        (Self::free() >= count).then_some(pages)
    }

    /// Pages that are free now.
    pub fn free() -> u64 {
        std::fs::read_to_string(Self::FREE).unwrap().trim().parse().unwrap()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        std::fs::write(Self::COUNT, &self.before).unwrap();
    }
}
