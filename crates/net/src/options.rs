//! Socket options by name.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

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

/// Makes the next `close` of this socket a reset: unsent bytes are dropped and the peer sees
/// `ECONNRESET`, not an orderly end (`SO_LINGER` with zero seconds).
///
/// # Errors
///
/// The socket is gone.
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}
