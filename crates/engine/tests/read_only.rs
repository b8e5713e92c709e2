//! Memory that is mapped for reading only: compared with the image, never written or cleared.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

mod support;

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mapram_engine::bitmap::PageBitmap;
use mapram_engine::image::ImageReader;
use mapram_engine::io;
use mapram_engine::memory::{Backing, Copying, FileRange, Memory, Piece, Region};
use mapram_engine::transfer::{self, CompareJob, Control, Difference, Options};
use mapram_engine::{ErrorKind, PAGE_BYTES};
use support::{CHUNK_BYTES, Guest, How, MIB, Random, bitmap_of, read};

const OPTIONS: Options = Options { queue_depth: 4, threads: 2 };
/// The first two MiB of block 1 may be written, all else may not.
const WRITABLE: u64 = 2 * MIB;

/// The guest's memory, opened so that nothing but the region says what may be written.
fn memory(guest: &Guest) -> Memory {
    let region = |block: usize, offset, length, writable| Region {
        block,
        offset,
        length,
        backing: Backing::Shared {
            file: FileRange { file: Arc::clone(&guest.files[block]), path: None, offset },
            process: None,
        },
        page_bytes: PAGE_BYTES,
        writable,
    };
    let rest = guest.lengths[1] - WRITABLE;
    let regions = vec![
        region(0, 0, guest.lengths[0], false),
        region(1, 0, WRITABLE, true),
        region(1, WRITABLE, rest, false),
    ];
    Memory::new(guest.lengths.clone(), regions).unwrap()
}

/// An image of what the guest holds now.
fn image_of(guest: &Guest) -> ImageReader {
    let (file, areas) = (tempfile::tempfile().unwrap(), guest.areas());
    for (block, area) in areas.areas().iter().enumerate() {
        file.write_all_at(&guest.bytes(block), area.offset).unwrap();
    }
    let bitmap = |block: usize| {
        PageBitmap::from_bytes(&bitmap_of(&guest.bytes(block)), guest.lengths[block] / PAGE_BYTES)
    };
    let bitmaps = (0..guest.lengths.len()).map(bitmap).collect();
    support::reader(&file, areas, bitmaps)
}

#[test]
fn one_byte_anywhere_is_found() {
    let guest = Guest::new(&[MIB + 8192, 5 * MIB]);
    let random = &mut Random(3);
    guest.fill(random);
    let image = image_of(&guest);
    let memory = memory(&guest);
    for name in io::NAMES {
        let Ok(engine) = io::probe(name, OPTIONS.requests(), OPTIONS.threads) else {
            eprintln!("SKIPPED: the {name} engine does not work here");
            continue;
        };
        let compare = || {
            let job =
                CompareJob { image: &image, memory: &memory, chunk_bytes: CHUNK_BYTES, options: OPTIONS };
            job.run(engine.as_ref(), &Control::default()).unwrap()
        };
        assert_eq!(compare(), None);
        for _ in 0..40 {
            let block = usize::try_from(random.below(2)).unwrap();
            let at = random.below(guest.lengths[block]);
            let was = read(&guest.files[block], at, 1)[0];
            guest.files[block].write_all_at(&[was ^ 0x40], at).unwrap();
            let is_compared = block == 0 || at >= WRITABLE;
            let expected = is_compared.then_some(Difference { block, offset: at - at % PAGE_BYTES });
            assert_eq!(compare(), expected);
            guest.files[block].write_all_at(&[was], at).unwrap();
        }
    }
}

#[test]
fn restoring_and_clearing_leave_it_alone() {
    let source = Guest::new(&[MIB, 5 * MIB]);
    source.fill(&mut Random(7));
    let image = image_of(&source);
    let target = Guest::new(&source.lengths);
    target.fill(&mut Random(8));
    let before: Vec<Vec<u8>> = (0..2).map(|block| target.bytes(block)).collect();
    let memory = memory(&target);
    let how = How { channels: 2, chunk_bytes: CHUNK_BYTES, options: OPTIONS, copying: Copying::Auto };
    support::restore(&image, &memory, &io::Blocking, how).unwrap();
    let cut = usize::try_from(WRITABLE).unwrap();
    assert!(target.bytes(0) == before[0]);
    assert!(target.bytes(1)[..cut] == source.bytes(1)[..cut]);
    assert!(target.bytes(1)[cut..] == before[1][cut..]);

    let nothing: Vec<_> = target.lengths.iter().map(|length| PageBitmap::new(length / PAGE_BYTES)).collect();
    transfer::clear(&memory, &nothing, 2, &Control::default()).unwrap();
    assert!(target.bytes(0) == before[0]);
    assert!(target.bytes(1)[..cut].iter().all(|byte| *byte == 0));
    assert!(target.bytes(1)[cut..] == before[1][cut..]);

    let piece = Piece { offset: WRITABLE - PAGE_BYTES, length: 8192, buffer_offset: 0 };
    // SAFETY: the piece is as long as the array.
    let written = unsafe { memory.write(1, &[piece], [1_u8; 8192].as_ptr()) };
    assert_eq!(written.unwrap_err().kind, ErrorKind::Usage);
    assert!(target.bytes(1)[cut..] == before[1][cut..]);
}
