//! The engine and the host helpers for Node.js: converts types and owns job handles, and holds no logic.
//!
//! Byte counts and offsets cross as JavaScript numbers, exact below 2^53. Functions throw an `Error` with `code`, `path`,
//! `offset` and `cause`; what may take its time runs on a thread of its own, and its promise is rejected with such an `Error`.

mod convert;
mod failure;
mod host;
mod image;
mod job;
mod memory;
mod transfer;
