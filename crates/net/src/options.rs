//! Socket options by name.

use std::io;
use std::net::Shutdown;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use socket2::{SockRef, TcpKeepalive};

/// When and how often the kernel asks a silent peer whether it still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first question.
    pub idle: Duration,
    /// Time between questions.
    pub interval: Duration,
    /// Unanswered questions after which the connection counts as dead.
    pub probes: u32,
}

/// Sends small writes at once instead of waiting for more (`TCP_NODELAY`).
///
/// # Errors
///
/// The socket is not a TCP socket, or is gone.
pub fn nodelay(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_nodelay(true)
}

/// Copies what has arrived on a connection and was not read, and leaves it to be read.
///
/// # Errors
///
/// Nothing is there (`WouldBlock`), or the connection broke.
pub fn peek(socket: &impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(recv(socket.as_fd().as_raw_fd(), into, flags)?)
}

/// Turns keep-alive probes on (`SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT`).
///
/// # Errors
///
/// A value is out of the kernel's range, or the socket is gone.
pub fn keepalive(socket: &impl AsFd, keepalive: &Keepalive) -> io::Result<()> {
    SockRef::from(socket).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes),
    )
}

/// How long written bytes may stay unacknowledged before the connection counts as dead
/// (`TCP_USER_TIMEOUT`).
///
/// # Errors
///
/// The socket is not a TCP socket, or is gone.
pub fn user_timeout(socket: &impl AsFd, after: Duration) -> io::Result<()> {
    SockRef::from(socket).set_tcp_user_timeout(Some(after))
}

/// Has the kernel pick the port of a `connect` from this range (`IP_LOCAL_PORT_RANGE`, for both
/// address families). A bound outside the namespace's own range means that of the namespace.
///
/// # Errors
///
/// The kernel is older than Linux 6.3, the range is empty, or the socket is gone.
#[expect(unsafe_code, reason = "nix has no wrapper for IP_LOCAL_PORT_RANGE")]
pub fn local_ports(socket: &impl AsFd, ports: RangeInclusive<u16>) -> io::Result<()> {
    /// From `linux/in.h`; the C library has no name for it yet.
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    /// The size of the value.
    const LENGTH: libc::socklen_t = 4;
    let range = u32::from(*ports.end()) << 16 | u32::from(*ports.start());
    // SAFETY: the pointer is to four bytes that outlive the call, and the kernel only reads them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const range).cast(),
            LENGTH,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes the next `close` of this socket a reset: unsent bytes are dropped and the peer sees
/// `ECONNRESET`, not an orderly end (`SO_LINGER` with zero seconds).
///
/// # Errors
///
/// The socket is gone.
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Takes [`reset_on_close`] back: a `close` sends what was written, and then an end.
///
/// # Errors
///
/// The socket is gone.
pub fn end_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(None)
}

/// Ends the sending and leaves the receiving open (`shutdown`, `SHUT_WR`): the peer reads to the
/// end of what was written.
///
/// # Errors
///
/// The connection is gone (`NotConnected`).
pub fn end_sending(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).shutdown(Shutdown::Write)
}

/// Bytes written that the peer's kernel has not acknowledged (`SIOCOUTQ`); an end of sending
/// counts as one until it is acknowledged.
///
/// # Errors
///
/// The socket is not a TCP socket, or is gone.
#[expect(unsafe_code, reason = "nix has no wrapper for SIOCOUTQ")]
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int, to which the pointer leads;
    // the descriptor is borrowed for the call.
    let answer = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(bytes).map_err(io::Error::other)
}
