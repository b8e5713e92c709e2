//! Seeds of faults against the whole life of an image: each ends in a right image or a clear error, and no hang.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of a test fail by panicking")]

mod support;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use mapram_engine::bitmap::PageBitmap;
use mapram_engine::image::ImageWriter;
use mapram_engine::io::{Faults, Simulated};
use mapram_engine::memory::Copying;
use mapram_engine::transfer::{Buffers, Control, Options};
use mapram_engine::{Error, ErrorKind};
use support::{CHUNK_BYTES, Guest, How, MIB, Random, bitmap_of, read};

const SEEDS: u64 = 500;
/// A run takes milliseconds; one that takes this long hangs.
const HANG: Duration = Duration::from_secs(60);
const METADATA: &[u8] = &[0xa5; 3000];

/// Some seeds have no faults but delays, some have a few of everything, and some run out of space.
fn faults(random: &mut Random) -> Faults {
    let rare = |random: &mut Random, most: u64| u32::try_from(random.below(most)).unwrap();
    let gentle = random.below(3) == 0;
    Faults {
        errors: if gentle { 0 } else { rare(random, 40) },
        short: rare(random, 400),
        transient: rare(random, 400),
        delayed: rare(random, 300),
        reordered: random.below(2) == 0,
        space_bytes: (random.below(5) == 0).then(|| random.below(6 * MIB)),
        calls: if gentle { 0 } else { rare(random, 60) },
        failing_call: (!gentle && random.below(4) == 0).then(|| random.below(14)),
        lying_syncs: false,
    }
}

fn options(random: &mut Random) -> Options {
    Options {
        queue_depth: 1 + u32::try_from(random.below(6)).unwrap(),
        threads: 1 + usize::try_from(random.below(3)).unwrap(),
    }
}

fn save(io: Arc<Simulated>, guest: &Guest, path: &Path, how: How) -> Result<Vec<PageBitmap>, Error> {
    let image = ImageWriter::create(io, path, false, true)?;
    let (_, bitmaps) = support::save(guest, &image, how, &Buffers::default(), &Control::default())?;
    image.write_metadata(&[(0, METADATA)])?;
    image.sync()?;
    image.publish()?;
    Ok(bitmaps)
}

/// Whether the file at `path` is the whole image of `guest`.
fn is_whole(path: &Path, guest: &Guest) -> bool {
    let file = File::open(path).unwrap();
    let pages_are_right = guest
        .areas()
        .areas()
        .iter()
        .enumerate()
        .all(|(block, area)| read(&file, area.offset, area.length) == guest.bytes(block));
    pages_are_right && read(&file, 0, METADATA.len() as u64) == METADATA
}

fn run_seed(seed: u64, directory: &Path) -> bool {
    let mut random = Random(seed);
    let guest = Guest::new(&[2 * MIB, 3 * MIB + 4096]);
    // Half of the seeds have chunks of more requests than the queue takes.
    let chunk_bytes = if random.below(2) == 0 { CHUNK_BYTES } else { 2 * MIB };
    if chunk_bytes == CHUNK_BYTES {
        guest.fill(&mut random)
    } else {
        guest.fill_scattered(&mut random)
    }
    let path = directory.join(format!("image-{seed}"));
    let io = Arc::new(Simulated::new(seed, faults(&mut random)));
    let how = How { channels: 3, chunk_bytes, options: options(&mut random), copying: Copying::Auto };
    let outcome = save(Arc::clone(&io), &guest, &path, how);
    match &outcome {
        Ok(bitmaps) => {
            assert!(is_whole(&path, &guest), "seed {seed}: a save that succeeded left a wrong image");
            for (block, bitmap) in bitmaps.iter().enumerate() {
                assert_eq!(bitmap.to_bytes(), bitmap_of(&guest.bytes(block)), "seed {seed}: wrong bitmap");
            }
        }
        Err(error) => {
            assert!(
                !error.message.is_empty() && error.kind != ErrorKind::Cancelled,
                "seed {seed}: {error:?}"
            );
            // A rename whose answer was lost, or a directory that could not be synced, may leave the whole image.
            assert!(!path.exists() || is_whole(&path, &guest), "seed {seed}: {error:?} left a broken image");
        }
    }
    if path.exists() {
        restore(seed, &guest, &path, chunk_bytes, &mut random);
    }
    outcome.is_ok()
}

fn restore(seed: u64, guest: &Guest, path: &Path, chunk_bytes: u64, random: &mut Random) {
    let how = How { channels: 3, chunk_bytes, options: options(random), copying: Copying::Auto };
    let bitmap = |(block, length): (usize, &u64)| {
        PageBitmap::from_bytes(&bitmap_of(&guest.bytes(block)), length / 4096)
    };
    let bitmaps = guest.lengths.iter().enumerate().map(bitmap).collect();
    let used = Guest::new(&guest.lengths);
    used.fill(random);
    let io = Simulated::new(seed ^ 0xdead, faults(random));
    let image = support::reader(&File::open(path).unwrap(), guest.areas(), bitmaps);
    match support::restore(&image, &used.memory(), &io, how) {
        Ok(_) => {
            for block in 0..guest.lengths.len() {
                assert!(used.bytes(block) == guest.bytes(block), "seed {seed}: a restore left wrong memory");
            }
        }
        Err(error) => {
            assert!(!error.message.is_empty() && error.kind != ErrorKind::Cancelled, "seed {seed}: {error:?}")
        }
    }
}

#[test]
fn every_seed_ends_in_a_right_image_or_a_clear_error() {
    let (done, watch) = mpsc::channel();
    let runner = std::thread::spawn(move || {
        let directory = tempfile::tempdir().unwrap();
        let mut successes = 0;
        for seed in 0..SEEDS {
            successes += u64::from(run_seed(seed, directory.path()));
            done.send(seed).unwrap();
        }
        successes
    });
    let mut last = None;
    loop {
        match watch.recv_timeout(HANG) {
            Ok(seed) => last = Some(seed),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the seed after {last:?} hangs"),
        }
    }
    let successes = runner.join().unwrap();
    eprintln!("{successes} of {SEEDS} seeds saved, the others failed as they should");
    assert!(
        successes > SEEDS / 5 && successes < SEEDS * 9 / 10,
        "{successes} successes: the faults test nothing"
    );
}
