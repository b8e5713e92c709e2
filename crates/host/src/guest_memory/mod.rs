//! Opening guest memory: from addresses in a process, or from what the caller names.

mod in_process;
mod named;
mod vma_file;

pub use in_process::{BlockAddress, open_guest};
pub use named::{NamedMemory, open_named};

#[cfg(test)]
mod tests;
