//! Power cuts at random points of a save's life: only what was synced is there afterwards, and of the rest any part, in
//! any order. There is never a file under the image's name, nor anything on a device with an image's magic, that is not
//! whole.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mapram_engine::image::ImageWriter;
use mapram_engine::io::{Direction, Faults, Request, Simulated};
use mapram_engine::pool::Pool;
use mapram_engine::{Error, Result};
use support::Random;

const LIVES: u64 = 48;
const CUTS_OF_A_LIFE: usize = 30;
const PAGE: usize = 4096;
const PAGES: usize = 24;
/// Bytes before the pages, and behind them.
const HEAD: usize = 2 * PAGE;
const TAIL: usize = 5000;
const IMAGE: usize = HEAD + PAGES * PAGE + TAIL;
const DEVICE: usize = IMAGE + 3 * PAGE;
/// The record in a device's last page; what was there before is another.
const RECORD: [u8; PAGE] = [0x44; PAGE];

/// A whole image: its magic, then bytes of which none is zero.
fn whole(byte: u8) -> Vec<u8> {
    let mut image = vec![byte; IMAGE];
    image[..4].copy_from_slice(b"QEVM");
    image
}

/// Writes an image as a save does: the length that it will need, pages by requests of which several are in flight, then
/// everything else, on a device with the record at its end.
fn save(writer: &ImageWriter, image: &[u8], random: &mut Random) -> Result<()> {
    writer.set_length((IMAGE + PAGE) as u64)?;
    writer.set_length((HEAD + PAGES * PAGE) as u64)?;
    writer.begin_transfer()?;
    write_pages(writer, image, random)?;
    writer.end_transfer()?;
    writer.set_length(IMAGE as u64)?;
    let tail = HEAD + PAGES * PAGE;
    let mut parts = vec![(0, &image[..100]), (100, &image[100..HEAD]), (tail as u64, &image[tail..])];
    parts.extend(writer.device_bytes().map(|bytes| (bytes - PAGE as u64, &RECORD[..])));
    writer.write_metadata(&parts)?;
    writer.sync()?;
    writer.publish()
}

fn write_pages(writer: &ImageWriter, image: &[u8], random: &mut Random) -> Result<()> {
    let pool = Pool::new(PAGES, PAGE)?;
    let failed = |cause| Error::os("a request failed", cause);
    let mut queue = writer.io().queue(4, &pool).map_err(failed)?;
    let mut completions = Vec::new();
    for page in 0..PAGES {
        let offset = HEAD + page * PAGE;
        let buffer = pool.slot(page);
        // SAFETY: the slot has that many bytes, and no request is in flight on it.
        unsafe { buffer.copy_from_nonoverlapping(image[offset..].as_ptr(), PAGE) };
        let request = Request {
            token: page as u64,
            direction: Direction::Write,
            fd: writer.fd().as_raw_fd(),
            offset: offset as u64,
            buffer,
            length: u32::try_from(PAGE).unwrap(),
        };
        while page - completions.len() == 4 || (page > completions.len() && random.below(3) == 0) {
            queue.wait(&mut completions).map_err(failed)?;
        }
        // SAFETY: pool and file outlive the queue, and nobody writes to the slot.
        unsafe { queue.push(request) }.map_err(failed)?;
    }
    while completions.len() < PAGES {
        queue.wait(&mut completions).map_err(failed)?;
    }
    completions.into_iter().try_for_each(|completion| completion.result.map(drop).map_err(failed))
}

/// Where a life's image goes, and what is there before.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    NewFile,
    OldFile,
    Leftover,
    BlankDevice,
    UsedDevice,
}

const KINDS: [Kind; 5] = [Kind::NewFile, Kind::OldFile, Kind::Leftover, Kind::BlankDevice, Kind::UsedDevice];

/// What the cuts of one life left: whole images, and things that only look like one.
fn cut(seed: u64, faults: Faults) -> (usize, Vec<String>) {
    let kind = KINDS[usize::try_from(seed).unwrap() % KINDS.len()];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let (old, new) = (whole(0x11), whole(0x22));
    let on_device = |image: &[u8]| {
        let mut device = vec![0x33; DEVICE];
        device[..image.len()].copy_from_slice(image);
        device
    };
    match kind {
        Kind::NewFile => {}
        Kind::OldFile => fs::write(&path, &old).unwrap(),
        Kind::Leftover => fs::write(directory.path().join("image.partial"), &old[..PAGE]).unwrap(),
        Kind::BlankDevice => fs::write(&path, on_device(&[])).unwrap(),
        Kind::UsedDevice => fs::write(&path, on_device(&old)).unwrap(),
    }
    let is_device = matches!(kind, Kind::BlankDevice | Kind::UsedDevice);
    let device = is_device.then_some("image");
    let io = Arc::new(Simulated::recording(seed, faults, directory.path(), device).unwrap());
    let mut random = Random(seed);
    let mut is_published = false;
    let created = ImageWriter::create(Arc::<Simulated>::clone(&io), &path, true, false);
    let outcome = created.and_then(|writer| {
        let outcome = save(&writer, &new, &mut random);
        is_published = writer.is_published();
        outcome
    });
    assert!(outcome.is_ok() || faults.calls > 0, "seed {seed}: {outcome:?}");

    let is_whole = |found: &[u8]| match is_device {
        true if found.starts_with(&new) => found[DEVICE - PAGE..] == RECORD,
        true => found.starts_with(&old) && found[DEVICE - PAGE..] == [0x33; PAGE],
        false => found == new || (kind == Kind::OldFile && found == old),
    };
    let looks_like_one = |found: &[u8]| !is_device || found.starts_with(b"QEVM");
    let (mut images, mut broken) = (0, Vec::new());
    for turn in 0..CUTS_OF_A_LIFE {
        let events = usize::try_from(random.below(io.events() as u64 + 1)).unwrap();
        let left = io.after_power_cut(events, random.next());
        let Some(found) = left.get(OsStr::new("image")).filter(|found| looks_like_one(found)) else {
            continue;
        };
        images += 1;
        if !is_whole(found) {
            broken.push(format!(
                "seed {seed}, {kind:?}, cut {turn}, behind {events} of {} events",
                io.events()
            ));
        }
    }
    // A save that succeeded is there, whatever comes after it, and one whose guest goes on is not.
    let left = io.after_power_cut(io.events(), random.next());
    let is_there = left.get(OsStr::new("image")).is_some_and(|found| found.starts_with(&new));
    assert!(
        is_there || outcome.is_err() || faults.lying_syncs,
        "seed {seed}: {kind:?}: durable and not there"
    );
    assert!(!is_there || is_published, "seed {seed}: {kind:?}: not published and there: {outcome:?}");
    (images, broken)
}

fn cut_many(faults: impl Fn(u64) -> Faults) -> (usize, Vec<String>) {
    let lives = (0..LIVES).map(|seed| cut(seed, faults(seed)));
    lives.fold((0, Vec::new()), |(images, broken), (more, others)| (images + more, [broken, others].concat()))
}

#[test]
fn no_cut_leaves_what_only_looks_like_an_image() {
    let faults = |seed| Faults {
        delayed: 200,
        reordered: true,
        // Half of the saves meet failures, and give up or go on.
        calls: if seed % 2 == 0 { 0 } else { 40 },
        ..Faults::default()
    };
    let (images, broken) = cut_many(faults);
    eprintln!("{} cuts left {images} images", usize::try_from(LIVES).unwrap() * CUTS_OF_A_LIFE);
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(images > 100, "only {images} images were left: the cuts test nothing");
}

#[test]
fn a_disk_that_lies_about_syncing_is_found_out() {
    let (_, broken) = cut_many(|_| Faults { lying_syncs: true, ..Faults::default() });
    assert!(
        broken.len() > 10,
        "{} broken images: the cuts would not find a sync that is missing",
        broken.len()
    );
}
