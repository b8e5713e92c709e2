//! What a disk was told, in order, and what of it a power cut leaves.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::ops::Range;

use super::Random;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A file by its number in the journal: inodes are used again.
type FileId = usize;

/// One thing that a disk was told.
#[derive(Debug)]
enum Event {
    Write {
        file: FileId,
        offset: usize,
        bytes: Vec<u8>,
    },
    SetLength {
        file: FileId,
        bytes: usize,
    },
    /// What is read there from now on, nobody knows.
    Discard {
        file: FileId,
        bytes: Range<usize>,
    },
    Sync {
        file: FileId,
    },
    /// The name leads to that file.
    Name {
        name: OsString,
        file: FileId,
    },
    /// The name leads to that file no more.
    Unname {
        name: OsString,
        file: FileId,
    },
    SyncDirectory,
}

/// The events on the files of one directory.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// What was on the disk before.
    contents: Vec<Vec<u8>>,
    names: BTreeMap<OsString, FileId>,
    /// Which file has which device and inode now.
    files: HashMap<(u64, u64), FileId>,
    events: Vec<Event>,
}

impl Journal {
    /// A file that is there, durably, before anything happens.
    pub(super) fn was_there(&mut self, name: OsString, identity: (u64, u64), content: Vec<u8>) {
        self.files.insert(identity, self.contents.len());
        self.names.insert(name, self.contents.len());
        self.contents.push(content);
    }

    pub(super) fn create(&mut self, name: &OsStr, identity: (u64, u64)) {
        let file = self.contents.len();
        self.contents.push(Vec::new());
        self.files.insert(identity, file);
        self.events.push(Event::Name { name: name.to_owned(), file });
    }

    pub(super) fn name(&mut self, name: &OsStr, identity: (u64, u64)) {
        self.record(identity, |file| Event::Name { name: name.to_owned(), file });
    }

    pub(super) fn unname(&mut self, name: &OsStr, identity: (u64, u64)) {
        self.record(identity, |file| Event::Unname { name: name.to_owned(), file });
    }

    pub(super) fn write(&mut self, identity: (u64, u64), offset: usize, bytes: &[u8]) {
        self.record(identity, |file| Event::Write { file, offset, bytes: bytes.to_vec() });
    }

    pub(super) fn set_length(&mut self, identity: (u64, u64), bytes: usize) {
        self.record(identity, |file| Event::SetLength { file, bytes });
    }

    pub(super) fn discard(&mut self, identity: (u64, u64), bytes: Range<usize>) {
        self.record(identity, |file| Event::Discard { file, bytes });
    }

    pub(super) fn sync(&mut self, identity: (u64, u64)) {
        self.record(identity, |file| Event::Sync { file });
    }

    pub(super) fn sync_directory(&mut self) {
        self.events.push(Event::SyncDirectory);
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    fn record(&mut self, identity: (u64, u64), event: impl FnOnce(FileId) -> Event) {
        if let Some(&file) = self.files.get(&identity) {
            self.events.push(event(file));
        }
    }

    /// The files by their names after a power cut behind the first `length` events. What was synced is there; of all
    /// else any part may be, in any order, a sector at a time.
    pub(super) fn after_power_cut(&self, length: usize, random: &mut Random) -> BTreeMap<OsString, Vec<u8>> {
        let events = self.events.get(..length).unwrap_or(&self.events);
        let mut names = self.names.clone();
        for (at, event) in events.iter().enumerate() {
            let (name, file) = match event {
                Event::Name { name, file } | Event::Unname { name, file } => (name, *file),
                _ => continue,
            };
            let is_durable = events[at..].iter().any(|later| matches!(later, Event::SyncDirectory));
            if !is_durable && random.chance(500) {
                continue;
            }
            if matches!(event, Event::Name { .. }) {
                names.insert(name.clone(), file);
            } else if names.get(name) == Some(&file) {
                names.remove(name);
            }
        }
        names.into_iter().map(|(name, file)| (name, self.content(file, events, random))).collect()
    }

    fn content(&self, file: FileId, events: &[Event], random: &mut Random) -> Vec<u8> {
        let is_sync = |event: &Event| matches!(event, Event::Sync { file: synced } if *synced == file);
        let synced = events.iter().rposition(is_sync).unwrap_or(0);
        let mut content = self.contents[file].clone();
        events[..synced].iter().for_each(|event| apply(event, file, &mut content, &mut |_| true));
        let mut rest: Vec<&Event> = events[synced..].iter().collect();
        for last in (1..rest.len()).rev() {
            rest.swap(last, random.below(u32::try_from(last).unwrap_or(u32::MAX) + 1) as usize);
        }
        // Some cuts come before the disk got to anything, some after nearly all.
        let share = random.below(1001);
        rest.into_iter().for_each(|event| apply(event, file, &mut content, &mut |_| random.chance(share)));
        content
    }
}

/// Does to `content` what of an event of `file` came to the disk: for a write each sector, for others all or nothing.
fn apply(event: &Event, file: FileId, content: &mut Vec<u8>, came: &mut dyn FnMut(usize) -> bool) {
    match event {
        Event::Write { file: of, offset, bytes } if *of == file => {
            let mut done = 0;
            while done < bytes.len() {
                let at = offset + done;
                let end = bytes.len().min(done + SECTOR - at % SECTOR);
                if came(at) {
                    let needed = content.len().max(offset + end);
                    content.resize(needed, 0);
                    content[at..offset + end].copy_from_slice(&bytes[done..end]);
                }
                done = end;
            }
        }
        Event::SetLength { file: of, bytes } if *of == file && came(0) => content.resize(*bytes, 0),
        Event::Discard { file: of, bytes } if *of == file && came(0) => {
            let end = content.len().min(bytes.end);
            content[bytes.start.min(end)..end].fill(0xdd);
        }
        _ => {}
    }
}
