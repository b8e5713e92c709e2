//! The one loop of all that moves pages between an image and memory: it takes chunks, hands each with a buffer to a stage, carries out the requests that the
//! stage asks for, and hands the chunk back when they have ended.

use super::chunks::{Chunk, ChunkQueue, Turn};
use super::requests::{Request, Requests, Target};
use super::threads::Team;
use crate::Result;
use crate::pool::Pool;

/// What a transfer does with a chunk.
///
/// # Safety
/// The memory of every request must be the chunk's buffer, or stay valid until the pump is dropped, and nobody but the
/// kernel may touch it before [`finish`](Self::finish) is called for its chunk.
pub(super) unsafe trait Stage: Sync {
    /// What is to be remembered of a chunk while its requests are in flight.
    type Pending;

    /// Begins a chunk. `buffer` has room for a whole chunk, and nothing is in flight on it.
    fn start(&self, chunk: &Chunk, buffer: *mut u8, requests: &mut Vec<Request>) -> Result<Self::Pending>;

    /// Ends a chunk, whose requests have ended.
    fn finish(&self, _chunk: &Chunk, _pending: Self::Pending, _buffer: *mut u8) -> Result<()> {
        Ok(())
    }
}

/// One thread's buffers and requests. Dropping it waits for what is in flight.
pub(super) struct Pump<'a> {
    team: &'a Team<'a>,
    pool: &'a Pool,
    requests: Requests<'a>,
}

impl<'a> Pump<'a> {
    /// # Errors
    /// `HostUnsupported` if the engine cannot be set up.
    pub fn new(team: &'a Team<'a>, pool: &'a Pool, target: &'a Target<'a>) -> Result<Self> {
        Ok(Self { team, pool, requests: Requests::new(target, pool, team.control)? })
    }

    /// Takes chunks until none is left and their requests have ended. Each slot of the pool must hold a whole chunk.
    ///
    /// # Errors
    /// The first of the stage's or a request's, or `Cancelled`. Requests may still be in flight then.
    pub fn run<S: Stage>(&mut self, stage: &'a S, chunks: &ChunkQueue<'_>) -> Result<()> {
        // Told before anybody waits for what is in flight, which may take as long as the storage likes.
        self.pass_all(stage, chunks).inspect_err(|_| self.team.fail())
    }

    fn pass_all<S: Stage>(&mut self, stage: &'a S, chunks: &ChunkQueue<'_>) -> Result<()> {
        let mut started: Vec<_> = (0..self.pool.slots()).map(|_| None).collect();
        let mut wanted = Vec::new();
        let mut turn = Turn::default();
        while let Some(chunk) = chunks.next(&mut turn) {
            let slot = self.free_slot(stage, &mut started)?;
            let reading = self.team.reading()?;
            let pending = stage.start(&chunk, self.pool.slot(slot), &mut wanted)?;
            drop(reading);
            // SAFETY: the stage promises that the memory is left alone until it is told that the chunk has ended, which it
            // is only after `take_free` has returned the slot.
            unsafe { self.requests.start(slot, chunk.block, &mut wanted) }?;
            started[slot] = Some((chunk, pending));
        }
        // None is given back, so that each comes once.
        (0..self.pool.slots()).try_for_each(|_| self.free_slot(stage, &mut started).map(drop))
    }

    /// A slot on which nothing is in flight; its chunk, if it had one, has ended.
    fn free_slot<S: Stage>(
        &mut self,
        stage: &'a S,
        started: &mut [Option<(Chunk, S::Pending)>],
    ) -> Result<usize> {
        let slot = self.requests.take_free()?;
        if let Some((chunk, pending)) = started[slot].take() {
            stage.finish(&chunk, pending, self.pool.slot(slot))?;
            self.team.control.advance(chunk.data_bytes());
        }
        Ok(slot)
    }
}
