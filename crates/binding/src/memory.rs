//! Guest memory handles.

use std::sync::Arc;
use std::thread;

use mapram_engine::memory::{Memory, Region};
use mapram_engine::{Error, ErrorKind, Result};
use mapram_host::guest_memory;
use napi::Env;
use napi::bindgen_prelude::{Float64Array, Object};
use napi_derive::napi;

use crate::convert::{integer, number};
use crate::failure::NativeError;
use crate::host::{HostOutcome, ask};
use crate::job::{Outcome, promise};
use crate::slot::Slot;

/// Where a RAM block is in the guest process.
#[napi(object)]
pub struct BlockAddress {
    /// Name, for messages.
    pub name: String,
    /// Host virtual address.
    pub address: f64,
    /// Bytes.
    pub length: f64,
}

/// Memory that the caller names itself: a file (by path or by fd) or a range of a process.
#[napi(object)]
pub struct NamedMemory {
    /// Name, for messages.
    pub name: String,
    /// Bytes.
    pub length: f64,
    /// Path of the file.
    pub file: Option<String>,
    /// Or its descriptor, which stays the caller's.
    pub fd: Option<i32>,
    /// First byte within the file; 0 by default.
    pub offset: Option<f64>,
    /// Or the process.
    pub pid: Option<i32>,
    /// And the address within it.
    pub address: Option<f64>,
}

/// A part of a RAM block with memory of one kind.
#[napi(object)]
pub struct RegionInfo {
    /// Index of the block.
    pub block: u32,
    /// First byte within the block.
    pub offset: f64,
    /// Bytes.
    pub length: f64,
    /// `anonymous`, `private-file`, `private-hugetlb`, `shared-file` or `shared-hugetlb`.
    pub kind: String,
    /// Bytes in a page of this memory.
    pub page_bytes: f64,
    /// Whether it may be written; if not, the process has mapped it for reading only.
    pub writable: bool,
    /// Path of the file behind it.
    pub path: Option<String>,
}

/// The extents that a scan found.
#[napi(object)]
#[derive(Default)]
pub struct ScanOutcome {
    /// Whether the scan succeeded.
    pub ok: bool,
    /// Why not.
    pub error: Option<NativeError>,
    /// For each block, groups of three numbers: offset within the block, length, source.
    pub extents: Option<Vec<Float64Array>>,
}

impl Outcome for ScanOutcome {
    fn failed(error: NativeError) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

/// RAM blocks, opened for reading or for writing.
#[napi]
pub struct GuestMemory {
    memory: Slot<Memory>,
}

#[napi]
impl GuestMemory {
    /// No memory yet: `open_process` or `open_named` finds it.
    #[napi(constructor, catch_unwind)]
    pub fn new() -> Self {
        Self { memory: Slot::default() }
    }

    /// Opens the memory of the guest whose VMM is process `pid`.
    #[napi(ts_return_type = "Promise<HostOutcome>", catch_unwind)]
    pub fn open_process<'env>(
        &self,
        env: &'env Env,
        pid: i32,
        blocks: Vec<BlockAddress>,
        writable: bool,
    ) -> napi::Result<Object<'env>> {
        let slot = self.memory.clone();
        ask(env, move || {
            let blocks = blocks.into_iter().map(block_address).collect::<Result<Vec<_>>>()?;
            slot.put(guest_memory::open_guest(pid, &blocks, writable)?);
            Ok(HostOutcome::default())
        })
    }

    /// Opens memory that the caller names itself. Descriptors must stay open until this has ended.
    #[napi(ts_return_type = "Promise<HostOutcome>", catch_unwind)]
    pub fn open_named<'env>(
        &self,
        env: &'env Env,
        blocks: Vec<NamedMemory>,
        writable: bool,
    ) -> napi::Result<Object<'env>> {
        let slot = self.memory.clone();
        ask(env, move || {
            let blocks = blocks.into_iter().map(named).collect::<Result<Vec<_>>>()?;
            slot.put(guest_memory::open_named(&blocks, writable)?);
            Ok(HostOutcome::default())
        })
    }

    /// The regions, block by block; none once it is closed.
    #[napi(catch_unwind)]
    pub fn regions(&self) -> Vec<RegionInfo> {
        let info = |region: &Region| RegionInfo {
            block: u32::try_from(region.block).unwrap_or(u32::MAX),
            offset: number(region.offset),
            length: number(region.length),
            kind: region.kind().to_owned(),
            page_bytes: number(region.page_bytes),
            writable: region.writable,
            path: path(region),
        };
        let memory = self.memory.get();
        memory.iter().flat_map(|memory| memory.regions()).map(info).collect()
    }

    /// Finds the extents that may hold data, without allocating anything in the guest.
    #[napi(ts_return_type = "Promise<ScanOutcome>", catch_unwind)]
    pub fn scan<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let memory = self.open();
        promise(env, move || {
            let memory = memory?;
            let extents =
                (0..memory.blocks().len()).map(|block| packed(&memory, block)).collect::<Result<_>>()?;
            Ok(ScanOutcome { ok: true, error: None, extents: Some(extents) })
        })
    }

    /// Gives the files and the process up once no job needs them any more: memory of a guest that has ended would
    /// stay allocated until JavaScript happens to collect this handle.
    #[napi(catch_unwind)]
    pub fn close(&self) {
        if let Some(memory) = self.memory.take() {
            // Not on JavaScript's thread: the last one to close a memory file gives all of its pages back, and a file system
            // may hang. Where there is no thread to be had, it is done here after all.
            let _ = thread::Builder::new().name("mapram-close".to_owned()).spawn(move || drop(memory));
        }
    }
}

impl GuestMemory {
    /// The memory for a job.
    pub(crate) fn open(&self) -> Result<Arc<Memory>> {
        self.memory.get().ok_or_else(|| Error::new(ErrorKind::Usage, "the memory was already closed"))
    }
}

fn path(region: &Region) -> Option<String> {
    region.backing.file()?.path.as_ref().map(|path| path.to_string_lossy().into_owned())
}

fn packed(memory: &Memory, block: usize) -> Result<Float64Array> {
    let numbers = memory
        .scan(block)?
        .into_iter()
        .flat_map(|extent| [number(extent.offset), number(extent.length), f64::from(extent.source)])
        .collect();
    Ok(Float64Array::new(numbers))
}

fn block_address(from: BlockAddress) -> Result<guest_memory::BlockAddress> {
    Ok(guest_memory::BlockAddress {
        name: from.name,
        address: integer(from.address, "address")?,
        length: integer(from.length, "length")?,
    })
}

fn named(from: NamedMemory) -> Result<guest_memory::NamedMemory> {
    let optional = |value: Option<f64>, what| value.map(|value| integer(value, what)).transpose();
    Ok(guest_memory::NamedMemory {
        length: integer(from.length, "length")?,
        offset: optional(from.offset, "offset")?.unwrap_or(0),
        address: optional(from.address, "address")?,
        name: from.name,
        file: from.file.map(Into::into),
        fd: from.fd,
        pid: from.pid,
    })
}
