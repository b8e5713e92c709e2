//! A connected Unix socket that Node reads and writes, and over which we pass fds.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use mapram_engine::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};

/// Most fds that one message carries (SCM_MAX_FD).
const MAX_FDS: usize = 253;

/// A connected stream socket: one fd for Node's `net.Socket`, and a duplicate for messages with fds.
#[derive(Debug)]
pub struct UnixConnection {
    for_node: Option<OwnedFd>,
    own: Option<OwnedFd>,
}

impl UnixConnection {
    /// Connects to the socket at `path`, however long that is; to an abstract name if it begins with a NUL.
    ///
    /// # Errors
    /// `NotFound`, `Permission`, `Qmp` if nobody listens there or so many wait that the kernel queues no more, `Io`
    /// otherwise.
    pub fn connect(path: &Path) -> Result<Self> {
        let failure = |errno: Errno| {
            let error = Error::os("connecting to the socket failed", errno).at_path(path);
            let refused = match errno {
                // What connect(2) says of anything that has a name but is no socket.
                Errno::CONNREFUSED if path.metadata().is_ok_and(|found| !found.file_type().is_socket()) => {
                    "this is no socket"
                }
                Errno::CONNREFUSED => {
                    "nobody listens on the socket: its QEMU has ended, or listens elsewhere"
                }
                Errno::AGAIN => {
                    "the QMP socket is busy: QEMU serves one client a socket, and others already wait for their turn"
                }
                _ => return error,
            };
            Error { message: refused.into(), ..error }.with_kind(ErrorKind::Qmp)
        };
        let (address, _inode) = address_of(path).map_err(failure)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failure)?;
        connect(&socket, &address).map_err(failure)?;
        let own = socket
            .try_clone()
            .map_err(|cause| Error::os("duplicating the socket failed", cause).at_path(path))?;
        Ok(Self { for_node: Some(socket), own: Some(own) })
    }

    /// The fd for whoever reads and writes lines; it is non-blocking.
    ///
    /// # Errors
    /// `Usage` after the first call.
    pub fn take_fd(&mut self) -> Result<OwnedFd> {
        self.for_node.take().ok_or_else(|| Error::usage("the socket's fd was already taken"))
    }

    /// The number of the process that called listen(2): a hint only, for it may have handed the socket on. 0 if it
    /// is none of our pid namespace.
    ///
    /// # Errors
    /// `Usage` for a closed connection, `Io` if the kernel does not tell.
    pub fn peer_pid(&self) -> Result<i32> {
        // rustix's type for the number cannot hold a 0.
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
        let (fd, option) = (self.own()?.as_raw_fd(), libc::SO_PEERCRED);
        let value = (&raw mut peer).cast();
        // SAFETY: the value is a ucred, into which any bytes may be written, and `length` is its size.
        match unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, value, &raw mut length) } {
            0 => Ok(peer.pid),
            _ => Err(Error::os("asking for the socket's peer failed", io::Error::last_os_error())),
        }
    }

    fn own(&self) -> Result<&OwnedFd> {
        self.own.as_ref().ok_or_else(|| Error::usage("the connection is closed"))
    }

    /// Sends `line` with `fds` attached to it, without waiting.
    ///
    /// # Errors
    /// `Usage` for too many fds, an empty line or a closed connection; `GuestGone` if the peer has closed; `Io` if the
    /// socket's buffer did not take the line at once: the connection is of no use any more if a part of it went out.
    pub fn send_with_fds(&self, line: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let own = self.own()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if line.is_empty() || fds.len() > MAX_FDS || !control.push(SendAncillaryMessage::ScmRights(fds)) {
            let message = "a message with fds needs at least one byte and carries at most 253 fds";
            return Err(Error::usage(message));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match retry_on_intr(|| sendmsg(own, &[IoSlice::new(line)], &mut control, flags)) {
            Ok(count) if count == line.len() => Ok(()),
            Ok(count) => Err(Error::new(
                ErrorKind::Io,
                format!("only {count} of {} bytes fitted the socket's buffer", line.len()),
            )),
            Err(errno @ (Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN)) => {
                Err(Error::os("the peer has closed the socket", errno).with_kind(ErrorKind::GuestGone))
            }
            Err(errno) => Err(Error::os("sending fds over the socket failed", errno)),
        }
    }

    /// Closes the duplicate, and the other fd if it was not taken. The connection ends when both are closed.
    pub fn close(&mut self) {
        self.own = None;
        self.for_node = None;
    }
}

/// The address of the socket at `path`. A path that is too long for an address is reached through the inode, which has
/// to stay open until the connection is there.
fn address_of(path: &Path) -> rustix::io::Result<(SocketAddrUnix, Option<OwnedFd>)> {
    if let [0, name @ ..] = path.as_os_str().as_bytes() {
        return Ok((SocketAddrUnix::new_abstract_name(name)?, None));
    }
    match SocketAddrUnix::new(path) {
        Err(Errno::NAMETOOLONG) => {
            let inode = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            Ok((SocketAddrUnix::new(format!("/proc/self/fd/{}", inode.as_raw_fd()))?, Some(inode)))
        }
        address => Ok((address?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::fs::File;
    use std::io::{IoSliceMut, Read, Write};
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    fn pair() -> (tempfile::TempDir, UnixConnection, UnixStream) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let connection = UnixConnection::connect(&path).unwrap();
        (directory, connection, listener.accept().unwrap().0)
    }

    #[test]
    fn fds_arrive_with_their_line() {
        let (_directory, mut connection, mut peer) = pair();
        let mut node = UnixStream::from(connection.take_fd().unwrap());
        assert_eq!(connection.take_fd().unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(connection.peer_pid().unwrap(), std::process::id().cast_signed());
        node.write_all(b"first\n").unwrap();
        let mut first = [0; 6];
        peer.read_exact(&mut first).unwrap();
        drop(node);

        let mut sent: Vec<File> = (0..2).map(|_| tempfile::tempfile().unwrap()).collect();
        sent[1].write_all(b"content").unwrap();
        let fds: Vec<_> = sent.iter().map(AsFd::as_fd).collect();
        connection.send_with_fds(b"{\"execute\": \"add-fd\"}\n", &fds).unwrap();

        let mut line = [0; 100];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&peer, &mut [IoSliceMut::new(&mut line)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        assert_eq!(&line[..received.bytes], b"{\"execute\": \"add-fd\"}\n");
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(fds.len(), 2);
        let mut text = [0; 7];
        std::os::unix::fs::FileExt::read_exact_at(
            &File::from(fds.into_iter().next_back().unwrap()),
            &mut text,
            0,
        )
        .unwrap();
        assert_eq!(&text, b"content");
    }

    #[test]
    fn a_full_socket_is_an_error_and_so_is_a_closed_one() {
        let (_directory, mut connection, peer) = pair();
        let file = tempfile::tempfile().unwrap();
        let result = loop {
            if let Err(error) = connection.send_with_fds(&[b' '; 50_000], &[file.as_fd()]) {
                break error;
            }
        };
        assert_eq!(result.kind, ErrorKind::Io, "{result}");
        drop(peer);
        let gone = connection.send_with_fds(b"x", &[]).unwrap_err();
        assert_eq!(gone.kind, ErrorKind::GuestGone, "{gone}");
        connection.close();
        assert_eq!(connection.send_with_fds(b"x", &[]).unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(connection.peer_pid().unwrap_err().kind, ErrorKind::Usage);
    }

    #[test]
    fn what_is_wrong_with_a_socket_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let kind = |name: &str| UnixConnection::connect(&path(name)).unwrap_err().kind;
        assert_eq!(kind("missing"), ErrorKind::NotFound);
        assert_eq!(kind(&"long".repeat(40)), ErrorKind::NotFound);
        drop(UnixListener::bind(path("dead")).unwrap());
        assert_eq!(kind("dead"), ErrorKind::Qmp);

        let _busy = UnixListener::bind(path("busy")).unwrap();
        let mut waiting = Vec::new();
        let refusal = loop {
            match UnixConnection::connect(&path("busy")) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert_eq!(refusal.kind, ErrorKind::Qmp, "{refusal}");
        assert!(refusal.message.contains("busy"), "{refusal}");
    }

    #[test]
    fn long_paths_and_abstract_names_are_reached() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        std::os::unix::fs::symlink(&deep, directory.path().join("short")).unwrap();
        let listener = UnixListener::bind(directory.path().join("short/qmp")).unwrap();
        UnixConnection::connect(&deep.join("qmp")).unwrap();
        listener.accept().unwrap();

        let name = format!("mapram-test-{}", std::process::id());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        UnixConnection::connect(Path::new(&format!("\0{name}"))).unwrap();
        listener.accept().unwrap();
    }
}
