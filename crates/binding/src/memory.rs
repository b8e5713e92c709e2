//! Guest memory handles.

use std::sync::Arc;
use std::thread;

use mapram_engine::memory::{Memory, Region};
use mapram_engine::{Error, Result};
use mapram_host::guest_memory;
use napi::Env;
use napi::bindgen_prelude::{Float64Array, Object};
use napi_derive::napi;

use crate::convert::{index, integer, number};
use crate::job::promise;

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

/// Memory that a program names itself: a file (by path or by descriptor), or a range of a process.
#[napi(object)]
pub struct NamedMemory {
    /// Name of the RAM block.
    pub name: String,
    /// Bytes in the block.
    pub length: f64,
    /// Path of the file that holds it.
    #[napi(ts_type = "string | undefined")]
    pub file: Option<String>,
    /// Or a descriptor of that file; it stays the caller's, and must stay open until the job has settled.
    #[napi(ts_type = "number | undefined")]
    pub fd: Option<i32>,
    /// First byte within the file; default 0.
    #[napi(ts_type = "number | undefined")]
    pub offset: Option<f64>,
    /// Or the process that holds it.
    #[napi(ts_type = "number | undefined")]
    pub pid: Option<i32>,
    /// And the address within that process.
    #[napi(ts_type = "number | undefined")]
    pub address: Option<f64>,
}

/// A part of a RAM block with memory of one kind.
#[napi(object)]
pub struct RegionInfo {
    /// Index of the block.
    pub block: u32,
    /// `anonymous`, `private-file`, `private-hugetlb`, `shared-file` or `shared-hugetlb`.
    pub kind: String,
    /// Whether it may be written; if not, the process has mapped it for reading only.
    pub writable: bool,
    /// Path of the file behind it.
    pub path: Option<String>,
}

/// The RAM blocks of a guest or of a program, opened for reading or for writing.
#[napi]
pub struct GuestMemory {
    memory: Option<Arc<Memory>>,
}

#[napi]
impl GuestMemory {
    /// Opens the memory of the guest whose virtual machine monitor is process `pid`.
    #[napi(ts_return_type = "Promise<GuestMemory>", catch_unwind)]
    pub fn of_process<'env>(
        env: &'env Env,
        pid: i32,
        blocks: Vec<BlockAddress>,
        writable: bool,
    ) -> napi::Result<Object<'env>> {
        promise(env, move || {
            let blocks = blocks.into_iter().map(block_address).collect::<Result<Vec<_>>>()?;
            Ok(Self { memory: Some(Arc::new(guest_memory::open_guest(pid, &blocks, writable)?)) })
        })
    }

    /// Opens memory that the caller names itself. Descriptors must stay open until this has ended.
    #[napi(
        ts_args_type = "blocks: readonly NamedMemory[], writable: boolean",
        ts_return_type = "Promise<GuestMemory>",
        catch_unwind
    )]
    pub fn of_named<'env>(
        env: &'env Env,
        blocks: Vec<NamedMemory>,
        writable: bool,
    ) -> napi::Result<Object<'env>> {
        promise(env, move || {
            let blocks = blocks.into_iter().map(named).collect::<Result<Vec<_>>>()?;
            Ok(Self { memory: Some(Arc::new(guest_memory::open_named(&blocks, writable)?)) })
        })
    }

    /// The regions, block by block; none once it is closed.
    #[napi(catch_unwind)]
    pub fn regions(&self) -> Vec<RegionInfo> {
        let info = |region: &Region| RegionInfo {
            block: index(region.block),
            kind: region.kind().to_owned(),
            writable: region.writable,
            path: path(region),
        };
        self.memory.iter().flat_map(|memory| memory.regions()).map(info).collect()
    }

    /// For each block the extents that may hold data, three numbers each: offset in the block, length, source. Nothing is
    /// allocated in the guest.
    #[napi(ts_return_type = "Promise<Array<Float64Array>>", catch_unwind)]
    pub fn scan<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let memory = self.open();
        promise(env, move || {
            let memory = memory?;
            (0..memory.blocks().len()).map(|block| packed(&memory, block)).collect::<Result<Vec<_>>>()
        })
    }

    /// Gives the files and the process up once no job needs them any more: memory of a guest that has ended would
    /// stay allocated until JavaScript happens to collect this handle.
    #[napi(catch_unwind)]
    pub fn close(&mut self) {
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
        self.memory.clone().ok_or_else(|| Error::usage("the memory was already closed"))
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
