//! Unix sockets that keep message bounds and carry descriptors (`SOCK_SEQPACKET`).

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::error::Named;
use crate::{Error, Result};

/// Descriptors taken from one message. The contract's messages carry one; a peer that sends more
/// than this has another contract, and the kernel closes what does not fit.
const MAX_DESCRIPTORS: usize = 4;

/// Clients of this socket are few: one proxy now and one taking over.
const BACKLOG: i32 = 16;

/// A listening socket at a path.
#[derive(Debug)]
pub struct SeqListener(AsyncFd<Socket>);

impl SeqListener {
    /// Listens at `path`, replacing a socket left there by an earlier process, readable and
    /// writable for the owner only. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// The directory is missing or not writable, or the path is something else than a socket.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(path).named("unlink (old socket)")?;
            }
            Ok(_) => {
                return Err(Error::System {
                    call: "bind (the path exists and is no socket)",
                    source: io::Error::from(io::ErrorKind::AlreadyExists),
                });
            }
            Err(_absent) => {}
        }
        let socket = open()?;
        socket
            .bind(&SockAddr::unix(path).named("bind AF_UNIX")?)
            .named("bind AF_UNIX")?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).named("chmod (socket)")?;
        socket.listen(BACKLOG).named("listen AF_UNIX")?;
        Ok(Self(registered(socket)?))
    }

    /// The next client. Cancel safe.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub async fn accept(&self) -> Result<SeqPacket> {
        let accepted = self
            .0
            .async_io(tokio::io::Interest::READABLE, Socket::accept)
            .await;
        let (socket, _unnamed) = accepted.named("accept AF_UNIX")?;
        socket.set_nonblocking(true).named("fcntl O_NONBLOCK")?;
        SeqPacket::new(socket)
    }
}

/// One connection that keeps message bounds.
#[derive(Debug)]
pub struct SeqPacket(AsyncFd<Socket>);

impl SeqPacket {
    fn new(socket: Socket) -> Result<Self> {
        Ok(Self(registered(socket)?))
    }

    /// Connects to the listener at `path`. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// Nobody listens there, or its queue is full (`WouldBlock`).
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let socket = open()?;
        let address = SockAddr::unix(path).named("connect AF_UNIX")?;
        socket.connect(&address).map_err(Error::Connect)?;
        Self::new(socket)
    }

    /// Two connected ends, for tests. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn pair() -> Result<(Self, Self)> {
        let kind = Type::SEQPACKET.nonblocking().cloexec();
        let (one, two) = Socket::pair(Domain::UNIX, kind, None).named("socketpair")?;
        Ok((Self::new(one)?, Self::new(two)?))
    }

    /// The user id of the process at the other end.
    ///
    /// # Errors
    ///
    /// The socket is gone.
    pub fn peer_uid(&self) -> Result<u32> {
        use nix::sys::socket::{getsockopt, sockopt};
        let credentials = getsockopt(self.0.get_ref(), sockopt::PeerCredentials)
            .named("getsockopt SO_PEERCRED")?;
        Ok(credentials.uid())
    }

    /// Sends one message, with a descriptor if given. Cancel safe: the message goes whole or not
    /// at all.
    ///
    /// # Errors
    ///
    /// The peer is gone, or the message is larger than the socket's buffer.
    pub async fn send(&self, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let raw: Option<[RawFd; 1]> = descriptor.map(|descriptor| [descriptor.as_raw_fd()]);
        self.0
            .async_io(tokio::io::Interest::WRITABLE, |socket| {
                let control = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
                sendmsg::<UnixAddr>(
                    socket.as_raw_fd(),
                    &[IoSlice::new(message)],
                    control.as_slice(),
                    MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                    None,
                )
                .map_err(io::Error::from)
            })
            .await
            .map(drop)
    }

    /// Receives one message into `buffer` and returns its length and the descriptors it carried.
    /// Length zero without descriptors is the peer's end. Cancel safe.
    ///
    /// # Errors
    ///
    /// The message was longer than `buffer` or carried more descriptors than the contract's
    /// (`InvalidData`; what came of it is closed), or the peer is gone.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.0
            .async_io(tokio::io::Interest::READABLE, |socket| {
                receive(socket.as_fd(), buffer)
            })
            .await
    }
}

/// Hands a socket to the runtime's event loop.
#[expect(
    unsafe_code,
    reason = "the runtime cannot see that the type keeps its descriptor"
)]
pub(crate) fn registered(socket: Socket) -> Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, answers with the same one for its whole life and
    // closes it only when dropped, which `AsyncFd` does after deregistering.
    unsafe { AsyncFd::register(socket) }
        .map_err(io::Error::from)
        .named("epoll_ctl")
}

fn open() -> Result<Socket> {
    Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None).named("socket AF_UNIX")
}

/// Control bytes, aligned as `cmsghdr` must be.
#[repr(C, align(8))]
struct Control([u8; control_space()]);

#[expect(
    unsafe_code,
    reason = "CMSG_SPACE is a pure computation behind an unsafe signature"
)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sixteen bytes of descriptors"
)]
const fn control_space() -> usize {
    let payload = (MAX_DESCRIPTORS * size_of::<RawFd>()) as u32;
    // SAFETY: CMSG_SPACE only computes with its argument.
    unsafe { libc::CMSG_SPACE(payload) as usize }
}

/// One `recvmsg`, owning every descriptor the kernel installed, also those of a message that is
/// then refused: none may leak.
#[expect(
    unsafe_code,
    reason = "nix gives no access to descriptors of a truncated message"
)]
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control([0; control_space()]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: `msghdr` is a C struct of integers and pointers, for which all zeroes is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: `header` points to one `iovec` over `buffer` and to `control`, all alive and
    // exclusively borrowed for the call, with their true lengths.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let Ok(length) = usize::try_from(received) else {
        return Err(io::Error::last_os_error());
    };
    let descriptors = descriptors(&header);
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(invalid("longer than the contract allows"));
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(invalid(
            "carries too many descriptors, or no descriptor is left",
        ));
    }
    Ok((length, descriptors))
}

/// The descriptors that `recvmsg` wrote behind `header.msg_control`.
#[expect(unsafe_code, reason = "walks the kernel's control messages")]
fn descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: `header` was filled by a successful `recvmsg`, and its control buffer is alive.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: non-null results of CMSG_FIRSTHDR and CMSG_NXTHDR point to a whole `cmsghdr`
        // within the aligned control buffer.
        let (level, kind, length) = unsafe {
            (
                (*message).cmsg_level,
                (*message).cmsg_type,
                (*message).cmsg_len,
            )
        };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only computes; CMSG_DATA of a valid header is within the buffer.
            let (head, data) = unsafe { (libc::CMSG_LEN(0) as usize, libc::CMSG_DATA(message)) };
            let count = length.saturating_sub(head) / size_of::<RawFd>();
            for index in 0..count.min(MAX_DESCRIPTORS) {
                // SAFETY: the kernel wrote `count` descriptors from `data` on; unaligned reads
                // are allowed for. Each is fresh and ours, so each is owned exactly once.
                let descriptor = unsafe {
                    let raw = data.cast::<RawFd>().add(index).read_unaligned();
                    OwnedFd::from_raw_fd(raw)
                };
                found.push(descriptor);
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `message` is a header of this buffer.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    found
}

fn invalid(what: &'static str) -> io::Error {
    Error::Message(what).into()
}

#[cfg(test)]
mod tests;
