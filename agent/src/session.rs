//! The server of ZDS: tells each connected node proxy which pods to serve.
//!
//! # Theory of operation
//! There is no queue of messages. The [`Board`] holds the pods that are to be served, and for each connection what it was told and
//! how it answered. A connection looks at the difference between the two, sends one message for it, waits for the answer, writes that
//! down, and looks again. So a proxy that comes back, a pod that goes while it is being added, or a proxy that falls behind
//! are all the same case, and nothing grows.
//!
//! The messages: the proxy says hello; the agent sends every pod (`Add` with the descriptor of its namespace, or `Keep` when that is
//! not at hand) and then `SnapshotSent`, which makes the proxy drop all others; from then on `Add` and `Del`. Each is
//! answered by one `Ack` before the next goes out.
//!
//! Several proxies may be connected while one takes over from another: `Add` goes to the newest only, `Del` to all. When the newest
//! goes, the one before it is the newest again and is told what it missed.
//!
//! # Invariants
//! * The answer belongs to the one message that is outstanding. A connection whose answer does not come in time is closed, because a
//!   late answer would be taken for that of the next message.
//! * [`Hub::serve`] returns success only after the newest proxy acknowledged this very namespace.
//!
//! # Failure modes
//! A proxy that refuses a pod is asked again every [`RETRY`]. Proxies that are gone keep nothing from happening: `Del` without a
//! proxy is success.

mod board;
mod connection;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambit_net::seqpacket::SeqListener;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::namespace::PodNetns;
use board::Board;
pub use board::{Identity, Served};

/// How long a proxy may take to accept a message or to answer it; the same as Istio's agent gives.
pub const ANSWER: Duration = Duration::from_secs(5);
/// Between two attempts to add a pod that the proxy refused; the same as the proxy's own.
pub const RETRY: Duration = Duration::from_secs(5);
/// After each accepted connection: at most five a second, so that a proxy that connects in a loop does not take the node down.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a pod is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// Environment: no proxy is connected.
    #[error("no node proxy is connected")]
    NoProxy,
    /// Peer: the proxy said no.
    #[error("the node proxy refused: {0}")]
    Refused(String),
    /// Peer: the proxy did not come to it in time.
    #[error("the node proxy did not answer in time")]
    TooLate,
}

/// The pods that are to be served, shared between the pods' tasks and the connections.
#[derive(Debug, Clone)]
pub struct Hub {
    board: Arc<Mutex<Board>>,
    /// Counts changes of the board.
    changes: Arc<watch::Sender<u64>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            board: Arc::default(),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Hub {
    /// Names a pod that is served already or will be, so that a proxy that connects meanwhile does not drop it.
    pub fn expect(&self, uid: &str, identity: &Identity) {
        self.change(|board| board.expect(uid, identity));
    }

    /// Has the pod served in this namespace, and waits for the newest proxy to say that it does.
    ///
    /// # Errors
    /// After [`ANSWER`] at the latest, with the reason. The pod stays on the board: a proxy that connects later is told of it.
    pub async fn serve(
        &self,
        uid: &str,
        identity: &Identity,
        netns: &Arc<PodNetns>,
    ) -> Result<(), NotServed> {
        let mut changes = self.changes.subscribe();
        self.change(|board| board.put(uid, identity, netns));
        let deadline = Instant::now() + ANSWER;
        loop {
            match self.board.lock().newest(uid) {
                None => {}
                Some(Served::In(id)) if *id == netns.id() => return Ok(()),
                Some(Served::Refused { why, .. }) => return Err(NotServed::Refused(why.clone())),
                Some(Served::In(_) | Served::Kept) => {}
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                let none = self.proxies() == 0;
                return Err(if none {
                    NotServed::NoProxy
                } else {
                    NotServed::TooLate
                });
            }
        }
    }

    /// Takes the pod off the board and waits until every proxy dropped it, [`ANSWER`] at the most.
    pub async fn release(&self, uid: &str) {
        let mut changes = self.changes.subscribe();
        self.change(|board| board.take(uid));
        let deadline = Instant::now() + ANSWER;
        while self.board.lock().is_told(uid) {
            if timeout_at(deadline, changes.changed()).await.is_err() {
                tracing::warn!(uid, "a node proxy did not drop the pod in time");
                return;
            }
        }
    }

    /// What the newest proxy said about the pod.
    #[must_use]
    pub fn served(&self, uid: &str) -> Option<Served> {
        self.board.lock().newest(uid).cloned()
    }

    /// How many proxies are connected.
    #[must_use]
    pub fn proxies(&self) -> usize {
        self.board.lock().connections()
    }

    /// Listens at `path`; the future serves proxies for ever.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(self, path: &Path) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let listener = SeqListener::bind(path)?;
        tracing::info!(path = %path.display(), "waiting for node proxies");
        Ok(async move {
            loop {
                match listener.accept().await {
                    Ok(packet) => drop(tokio::spawn(connection::converse(self.clone(), packet))),
                    Err(error) => tracing::warn!(%error, "a node proxy could not be accepted"),
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        })
    }

    /// Puts a pod on the board without waiting for an answer.
    pub(crate) fn put(&self, uid: &str, identity: &Identity, netns: &Arc<PodNetns>) {
        self.change(|board| board.put(uid, identity, netns));
    }

    fn change<T>(&self, with: impl FnOnce(&mut Board) -> T) -> T {
        let result = with(&mut self.board.lock());
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
        result
    }
}

#[cfg(test)]
mod tests;
