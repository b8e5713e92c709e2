//! The engine and the host helpers for Node.js: converts types and owns job handles, and holds no logic.
//!
//! Byte counts and offsets cross as JavaScript numbers, exact below 2^53. Synchronous functions throw an `Error` with
//! `code`, `path` and `offset`; jobs run on threads of their own and resolve with an outcome object, because a
//! rejected promise could carry no more than a message.

mod convert;
mod failure;
mod host;
mod image;
mod job;
mod memory;
mod slot;
mod transfer;
