//! What Node cannot do on Linux: fds over the QMP socket, a process's memory map, and opening its memory.

mod cgroup;
pub mod descriptor;
pub mod files;
pub mod guest_lock;
pub mod guest_memory;
pub mod maps;
pub mod unix_connection;
