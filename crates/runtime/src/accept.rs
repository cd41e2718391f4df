//! The one accept loop: tells errors apart, backs off, drains.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::drain::Draining;

/// First and longest wait when descriptors or memory are exhausted: long enough that connections
/// end meanwhile, short enough that the client's SYN retry (one second) is not the next to help.
const EXHAUSTED_FIRST: Duration = Duration::from_millis(5);
const EXHAUSTED_MOST: Duration = Duration::from_secs(1);

/// Errors of single connections in a row before the loop pauses once. A flood of connections that
/// die in the queue must not take the thread from the living ones.
const PATIENCE: u32 = 64;

/// Accepted before others of the thread get their turn: a fraction of a millisecond.
const IN_A_TURN: u32 = 16;

/// Accepted when the drain starts: as many as a listener's queue holds, so that no client that
/// the kernel has already answered is reset.
const LAST_ROUND: usize = 1024;

/// How often a pause is told: connections that end let others in, and each time it may begin anew.
const TOLD: Duration = Duration::from_secs(10);

/// What an `accept` error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptError {
    /// One connection died before it was accepted; the next may live.
    Connection,
    /// Descriptors or memory are exhausted, in this process or the system.
    Exhausted,
    /// The listener is broken for good.
    Listener,
}

/// Tells what an `accept` error means (accept(2), "Error handling").
#[must_use]
pub fn classify(error: &io::Error) -> AcceptError {
    // Linux numbers; std has no kinds for most of them.
    const EPERM: i32 = 1; // a firewall rule forbade the connection
    const EINTR: i32 = 4;
    const EAGAIN: i32 = 11;
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENONET: i32 = 64;
    const EPROTO: i32 = 71;
    const ENOPROTOOPT: i32 = 92;
    const EOPNOTSUPP: i32 = 95;
    const ENETDOWN: i32 = 100;
    const ENETUNREACH: i32 = 101;
    const ECONNABORTED: i32 = 103;
    const ECONNRESET: i32 = 104;
    const ENOBUFS: i32 = 105;
    const ETIMEDOUT: i32 = 110;
    const EHOSTDOWN: i32 = 112;
    const EHOSTUNREACH: i32 = 113;
    match error.raw_os_error() {
        Some(
            EPERM | EINTR | EAGAIN | ENONET | EPROTO | ENOPROTOOPT | EOPNOTSUPP | ENETDOWN
            | ENETUNREACH | ECONNABORTED | ECONNRESET | ETIMEDOUT | EHOSTDOWN | EHOSTUNREACH,
        ) => AcceptError::Connection,
        Some(ENOMEM | ENFILE | EMFILE | ENOBUFS) => AcceptError::Exhausted,
        _ => AcceptError::Listener,
    }
}

/// Where connections come from: a listener, or a test's script.
pub trait Accept {
    /// What is accepted.
    type Connection;
    /// The next connection. Cancel safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Connection, SocketAddr)>>;
    /// The next connection if one is waiting.
    fn accept_now(&self) -> Option<(Self::Connection, SocketAddr)>;
}

impl Accept for TcpListener {
    type Connection = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self).await
    }

    fn accept_now(&self) -> Option<(TcpStream, SocketAddr)> {
        // Unconstrained, because an exhausted task budget would look like an empty queue.
        tokio::task::unconstrained(Self::accept(self))
            .now_or_never()?
            .ok()
    }
}

/// Held while a listener closes. The kernel gives what still waits in its queue to another listener
/// of the port, of this process or of the next (`ambit_net::listen::hand_over`), and resets what it
/// gave to one that closes in the same instant, which those of several threads would do.
static CLOSING: Mutex<()> = Mutex::new(());

/// Hands every connection to `serve` until the drain is requested, then what is already queued,
/// then closes the listener.
///
/// `serve` must not wait: it spawns. Accept errors never end the loop, and never make it spin,
/// unless the listener itself is broken.
///
/// # Errors
///
/// The listener is broken ([`AcceptError::Listener`]).
pub async fn accept_loop<L: Accept>(
    listener: L,
    draining: &Draining,
    mut serve: impl FnMut(L::Connection, SocketAddr),
) -> io::Result<()> {
    let mut exhausted = Backoff::new(EXHAUSTED_FIRST, EXHAUSTED_MOST);
    let (mut failures_in_a_row, mut in_a_turn) = (0u32, 0u32);
    let mut told: Option<Instant> = None;
    let mut drain = pin!(draining.requested());
    loop {
        let accepted = match select(pin!(listener.accept()), &mut drain).await {
            Either::Left((accepted, _)) => accepted,
            Either::Right(((), _)) => break,
        };
        let error = match accepted {
            Ok((connection, peer)) => {
                exhausted.reset();
                failures_in_a_row = 0;
                serve(connection, peer);
                in_a_turn = (in_a_turn + 1) % IN_A_TURN;
                if in_a_turn == 0 {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            Err(error) => error,
        };
        failures_in_a_row = failures_in_a_row.saturating_add(1);
        let wait = match classify(&error) {
            AcceptError::Connection if failures_in_a_row < PATIENCE => continue,
            AcceptError::Listener => return Err(error),
            AcceptError::Connection | AcceptError::Exhausted => exhausted.next(Backoff::WHOLE),
        };
        if told.is_none_or(|told| told.elapsed() >= TOLD) {
            told = Some(Instant::now());
            tracing::warn!(%error, "accepting pauses");
        }
        failures_in_a_row = 0;
        if let Either::Right(_) = select(pin!(tokio::time::sleep(wait)), &mut drain).await {
            break;
        }
    }
    for _ in 0..LAST_ROUND {
        let Some((connection, peer)) = listener.accept_now() else {
            break;
        };
        serve(connection, peer);
    }
    let _alone = CLOSING.lock();
    drop(listener);
    Ok(())
}

#[cfg(test)]
mod tests;
