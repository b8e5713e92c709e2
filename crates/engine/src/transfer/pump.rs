//! The one loop of all transfers: it takes chunks, hands each with a buffer to a stage, carries out the requests that the
//! stage asks for, and hands the chunk back when they have ended.

use std::path::Path;

use super::chunks::{Chunk, ChunkQueue, Turn};
use super::requests::{Request, Requests};
use super::threads::Team;
use crate::io::{Io, set_up_error};
use crate::pool::Pool;
use crate::{Error, ErrorKind, Result};

/// What a transfer does with a chunk.
///
/// # Safety
/// The memory of every request must be the chunk's buffer, or stay valid until the pump is dropped, and nobody but the
/// kernel may touch it before [`finish`](Self::finish) is called for its chunk.
pub(super) unsafe trait Stage: Sync {
    /// What is to be remembered of a chunk while its requests are in flight.
    type Pending;

    /// Begins a chunk. `buffer` has room for a whole chunk, and nothing is in flight on it.
    fn start<'a>(
        &'a self,
        chunk: &Chunk,
        buffer: *mut u8,
        requests: &mut Vec<Request<'a>>,
    ) -> Result<Self::Pending>;

    /// Ends a chunk, whose requests have ended.
    fn finish(&self, pending: Self::Pending, buffer: *mut u8) -> Result<()>;
}

/// One thread's buffers and requests. Dropping it waits for what is in flight.
pub(super) struct Pump<'a> {
    team: &'a Team<'a>,
    pool: &'a Pool,
    /// `None` for stages that move nothing to or from a file.
    requests: Option<Requests<'a>>,
}

impl<'a> Pump<'a> {
    /// A pump for stages that ask for no requests.
    pub fn without_io(team: &'a Team<'a>, pool: &'a Pool) -> Self {
        Self { team, pool, requests: None }
    }

    /// A pump with a queue of `depth` requests on the file that errors call `path`.
    ///
    /// # Errors
    /// `HostUnsupported` if the engine cannot be set up.
    pub fn new(team: &'a Team<'a>, pool: &'a Pool, io: &dyn Io, depth: u32, path: &'a Path) -> Result<Self> {
        let queue = io.queue(depth, pool).map_err(|cause| set_up_error(io.name(), cause))?;
        let requests = Requests::new(queue, pool.slots(), depth as usize, path, team.control());
        Ok(Self { team, pool, requests: Some(requests) })
    }

    /// Takes chunks until none is left and their requests have ended. Each slot of the pool must hold a whole chunk.
    ///
    /// # Errors
    /// The first of the stage's or a request's, or `Cancelled`. Requests may still be in flight then.
    pub fn run<S: Stage>(&mut self, stage: &'a S, chunks: &ChunkQueue<'_>) -> Result<()> {
        let outcome = self.pass_all(stage, chunks);
        if outcome.is_err() {
            // Before anybody waits for what is in flight, which may take as long as the storage likes.
            self.team.fail();
        }
        outcome
    }

    fn pass_all<S: Stage>(&mut self, stage: &'a S, chunks: &ChunkQueue<'_>) -> Result<()> {
        let mut slots = Slots::new(self.pool.slots());
        let mut wanted = Vec::new();
        let mut turn = Turn::default();
        while let Some(chunk) = chunks.next(&mut turn) {
            let slot = loop {
                match slots.free.pop() {
                    Some(slot) => break slot,
                    None => self.finish_some(stage, &mut slots)?,
                }
            };
            let pending = {
                let _reading = self.team.control().reading();
                self.team.check()?;
                stage.start(&chunk, self.pool.slot(slot), &mut wanted)?
            };
            if wanted.is_empty() {
                stage.finish(pending, self.pool.slot(slot))?;
                slots.free.push(slot);
                continue;
            }
            slots.pending[slot] = Some(pending);
            let requests = self.requests.as_mut().ok_or_else(no_queue)?;
            for request in wanted.drain(..) {
                // SAFETY: the stage promises that the memory is left alone until it is told that the chunk has ended,
                // which it is only after `take_finished` has returned the slot.
                unsafe { requests.start(slot, request) }?;
            }
        }
        while slots.free.len() < self.pool.slots() {
            self.finish_some(stage, &mut slots)?;
        }
        Ok(())
    }

    /// Waits for a slot if none has finished, and ends the chunk of every finished one.
    fn finish_some<S: Stage>(&mut self, stage: &'a S, slots: &mut Slots<S::Pending>) -> Result<()> {
        let requests = self.requests.as_mut().ok_or_else(no_queue)?;
        let mut next = requests.take_finished();
        if next.is_none() {
            requests.wait()?;
            next = requests.take_finished();
        }
        while let Some(slot) = next {
            if let Some(pending) = slots.pending[slot].take() {
                stage.finish(pending, self.pool.slot(slot))?;
            }
            slots.free.push(slot);
            next = requests.take_finished();
        }
        Ok(())
    }
}

fn no_queue() -> Error {
    Error::new(ErrorKind::Internal, "a transfer without a queue asked for I/O")
}

/// Which slots are free, and what is in flight on the others.
struct Slots<P> {
    free: Vec<usize>,
    pending: Vec<Option<P>>,
}

impl<P> Slots<P> {
    fn new(count: usize) -> Self {
        Self { free: (0..count).collect(), pending: (0..count).map(|_| None).collect() }
    }
}
