//! A process's memory map, as /proc/PID/maps prints it (proc_pid_maps(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use mapram_engine::memory::Process;
use mapram_engine::{Error, ErrorKind, Result};

/// One mapping: a line of /proc/PID/maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// Whether writes reach the file and others who have mapped it.
    pub shared: bool,
    /// Whether the process may write to it.
    pub writable: bool,
    /// Offset in the file of the first byte.
    pub offset: u64,
    /// Device number of the file's file system, in the form of `st_dev`; a few file systems tell stat(2) another one.
    pub device: u64,
    /// Inode number of the file; 0 for memory without a file.
    pub inode: u64,
    /// The file's path, as the kernel shows it: ` (deleted)` may follow, and line feeds are `\012`.
    pub path: OsString,
}

/// The mappings that `text`, the content of /proc/PID/maps, lists: ascending.
///
/// # Errors
/// `HostUnsupported` with the line that is not understood.
pub fn parse_maps(text: &[u8]) -> Result<Vec<Vma>> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line);
                Error::new(ErrorKind::HostUnsupported, format!("/proc/PID/maps has an unknown line: {line}"))
            })
        })
        .collect()
}

/// Reads the map of `process`.
pub(crate) fn of_process(process: &Process) -> Result<Vec<Vma>> {
    let pid = process.pid();
    let text = std::fs::read(format!("/proc/{pid}/maps"));
    // A guest that is gone explains a failure better; if it is not, what was read is its own.
    process.check_alive()?;
    parse_maps(
        &text.map_err(|cause| Error::os(format!("reading the memory map of process {pid} failed"), cause))?,
    )
}

/// `START-END rwxs OFFSET MAJOR:MINOR INODE   PATH`, numbers in hexadecimal but for the inode.
fn parse_line(line: &[u8]) -> Option<Vma> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = field()?.split_once('-')?;
    let &[_, write @ (b'w' | b'-'), _, share @ (b's' | b'p')] = field()?.as_bytes() else { return None };
    let offset = hex(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse().ok()?;
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let path = fields.next().map_or(&[][..], <[u8]>::trim_ascii_start);
    Some(Vma {
        start: hex(start)?,
        end: hex(end)?,
        shared: share == b's',
        writable: write == b'w',
        offset,
        device: rustix::fs::makedev(number(major)?, number(minor)?),
        inode,
        path: OsString::from_vec(path.to_vec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn lines_of_every_shape_are_understood() {
        let text = b"7f0000000000-7f0040000000 rw-s 00001000 00:01 2050                       /memfd:pc.ram (deleted)\n\
            7f0050000000-7f0050021000 rw-p 00000000 00:00 0 \n\
            7f0060000000-7f0060001000 r--p 7fffffff000 fd:1f 18446744073709551615 /a b/c\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
        let vmas = parse_maps(text).unwrap();
        assert_eq!(vmas.len(), 4);
        assert!(vmas[0].shared && !vmas[1].shared);
        assert!(vmas[0].writable && vmas[1].writable && !vmas[2].writable);
        assert_eq!(
            (vmas[0].offset, vmas[0].inode, vmas[0].device),
            (0x1000, 2050, rustix::fs::makedev(0, 1))
        );
        assert_eq!(vmas[0].path, OsStr::new("/memfd:pc.ram (deleted)"));
        assert_eq!((vmas[1].start, vmas[1].end, vmas[1].inode), (0x7f00_5000_0000, 0x7f00_5002_1000, 0));
        assert_eq!(vmas[1].path, OsStr::new(""));
        assert_eq!((vmas[2].device, vmas[2].inode), (rustix::fs::makedev(0xfd, 0x1f), u64::MAX));
        assert_eq!(vmas[2].path, OsStr::new("/a b/c"));
        assert_eq!(vmas[3].path, OsStr::new("[vsyscall]"));
    }

    #[test]
    fn an_unknown_line_is_quoted() {
        for line in ["7f00-7f01 rw-x 0 00:00 0", "garbage", "7f00-7f01 rw-p 0 00 0", "7f00-7f01 rw-p 0 00:00"]
        {
            let error = parse_maps(line.as_bytes()).unwrap_err();
            assert!(error.message.contains(line), "{error}");
        }
    }

    #[test]
    fn the_own_map_has_the_stack_and_code() {
        let process = Process::open(std::process::id().cast_signed()).unwrap();
        let vmas = of_process(&process).unwrap();
        let here = &raw const process as usize as u64;
        assert!(vmas.iter().any(|vma| vma.start <= here && here < vma.end));
        assert!(vmas.is_sorted_by(|a, b| a.end <= b.start));
    }
}
