//! From addresses in a process to memory that the engine can read and write.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use mapram_engine::memory::{Backing, FileRange, FileSystem, Memory, Process, ProcessRange, Region};
use mapram_engine::{Error, PAGE_BYTES, Result};

use super::vma_file;
use crate::cgroup;
use crate::maps::{self, Vma};

/// A RAM block's place in a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockAddress {
    /// The block's name, for messages.
    pub name: String,
    /// First address; page-aligned.
    pub address: u64,
    /// Bytes; a multiple of the page size.
    pub length: u64,
}

/// Opens the memory of `blocks` in the process `pid`, for reading only or for writing too.
///
/// # Errors
/// `GuestGone` if there is no such process; `Usage` if a block is not mapped throughout, naming block and address;
/// `Permission` if the kernel does not let us; `HostUnsupported`, naming the block and what is mapped, for memory that
/// is neither anonymous nor a regular file (a device, for example), and where the kernel is too old for memory that is
/// to be written; or whatever the kernel said.
pub fn open_guest(pid: i32, blocks: &[BlockAddress], writable: bool) -> Result<Memory> {
    let mut opener = ProcessOpener::new(pid, writable)?;
    let mut regions = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        regions.extend(opener.regions(index, block)?);
    }
    opener.check_access(&regions)?;
    finish(blocks.iter().map(|block| block.length).collect(), regions, writable)
}

/// Memory of blocks with these lengths, if it can be written where it is to be.
pub(super) fn finish(lengths: Vec<u64>, regions: Vec<Region>, writable: bool) -> Result<Memory> {
    let memory = Memory::new(lengths, regions)?;
    if writable {
        memory.check_writable()?;
    }
    Ok(memory)
}

/// Device, inode, path, and whether it is mapped for writing.
type FileKey = (u64, u64, OsString, bool);

/// Makes regions of a process's mappings; opens each mapped file once.
pub(super) struct ProcessOpener {
    process: Arc<Process>,
    vmas: Vec<Vma>,
    files: HashMap<FileKey, Arc<File>>,
    writable: bool,
    /// Whether pages that we put into a tmpfs would be charged to another memory cgroup than the process's own.
    is_charged_apart: bool,
}

impl ProcessOpener {
    pub fn new(pid: i32, writable: bool) -> Result<Self> {
        let process = Arc::new(Process::open(pid)?);
        let vmas = maps::of_process(&process)?;
        // Without the right to write to the process, the file is the only way.
        let is_charged_apart =
            writable && !cgroup::shares_memory_cgroup(pid) && process.check_access().is_ok();
        Ok(Self { process, vmas, files: HashMap::new(), writable, is_charged_apart })
    }

    /// The regions of a block: one for each mapping that it spans.
    pub fn regions(&mut self, index: usize, block: &BlockAddress) -> Result<Vec<Region>> {
        let end = check_range(block)?;
        let mut regions = Vec::new();
        let mut address = block.address;
        while address < end {
            let next = self.vmas.partition_point(|vma| vma.end <= address);
            let Some(vma) = self.vmas.get(next).filter(|vma| vma.start <= address).cloned() else {
                let pid = self.process.pid();
                let message =
                    format!("RAM block {} is not mapped at {address:#x} in process {pid}", block.name);
                return Err(Error::usage(message));
            };
            let length = vma.end.min(end) - address;
            let (backing, page_bytes) = self.backing(&vma, address).map_err(|error| Error {
                message: format!("RAM block {}: {}", block.name, error.message),
                ..error
            })?;
            regions.push(Region {
                block: index,
                offset: address - block.address,
                length,
                backing,
                page_bytes,
                writable: vma.writable,
            });
            address += length;
        }
        Ok(regions)
    }

    /// What kind of memory `address` in `vma` is: decided by the mapping's flag, its inode and its file system, for
    /// names can be anything.
    fn backing(&mut self, vma: &Vma, address: u64) -> Result<(Backing, u64)> {
        let process = ProcessRange { process: Arc::clone(&self.process), address };
        if vma.inode == 0 {
            return Ok((Backing::Private { process, file: None }, PAGE_BYTES));
        }
        let file = FileRange {
            file: self.file(vma)?,
            path: Some(Path::new(&vma.path).into()),
            offset: vma.offset + (address - vma.start),
        };
        let file_system = FileSystem::of(&file.file)?;
        let backing = if vma.shared {
            let matters = match file_system {
                FileSystem::Hugetlbfs { .. } => true,
                FileSystem::Tmpfs => self.is_charged_apart,
                // The kernel charges pages of other file systems, and huge ones, to whoever asks for them, in whatever way.
                _ => false,
            };
            Backing::Shared { file, process: matters.then_some(process) }
        } else {
            Backing::Private { process, file: Some(file) }
        };
        Ok((backing, page_bytes(file_system)))
    }

    fn file(&mut self, vma: &Vma) -> Result<Arc<File>> {
        // Writes to private memory go to the process, never to the file; what is mapped for reading only is not written at all.
        let writable = self.writable && vma.shared && vma.writable;
        let key = (vma.device, vma.inode, vma.path.clone(), writable);
        if let Some(file) = self.files.get(&key) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(vma_file::open(&self.process, vma, writable)?);
        self.files.insert(key, Arc::clone(&file));
        Ok(file)
    }

    /// Refuses before anything is transferred if a region needs the process's memory and the kernel forbids that.
    pub fn check_access(&self, regions: &[Region]) -> Result<()> {
        let by_file = |region: &Region| matches!(region.backing, Backing::Shared { .. });
        if regions.iter().all(by_file) { Ok(()) } else { self.process.check_access() }
    }
}

/// Bytes in a page of memory on such a file system.
pub(super) fn page_bytes(file_system: FileSystem) -> u64 {
    match file_system {
        FileSystem::Hugetlbfs { page_bytes } => page_bytes,
        _ => PAGE_BYTES,
    }
}

/// The end of the block's addresses, if they are page-aligned and do not overflow.
fn check_range(block: &BlockAddress) -> Result<u64> {
    let aligned = block.address.is_multiple_of(PAGE_BYTES) && block.length.is_multiple_of(PAGE_BYTES);
    block.address.checked_add(block.length).filter(|_| aligned).ok_or_else(|| {
        let BlockAddress { name, address, length } = block;
        let message = format!("RAM block {name} is not page-aligned: {length} bytes at {address:#x}");
        Error::usage(message)
    })
}
