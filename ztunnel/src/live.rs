//! Open connections of one data thread, re-checked whenever the view changes.
//!
//! # Theory of operation
//! A connection registers in the same turn in which it was decided, before anything is awaited, so
//! there is no moment in which a change of the view could pass it by. After each published view
//! the thread asks again, for every entry, the question it was admitted by; an entry that fails is
//! told to end and carries the reason. The same goes for new revocation lists and the certificates
//! that an entry rests on. What an entry is told is also what the admin page shows.
//!
//! # Invariants
//! - An entry lives exactly as long as its [`Guard`].
//! - A thread's entries are touched by that thread alone.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ambit_model::admit::{self, Admitted, Refusal};
use ambit_model::reason::Reason;
use ambit_model::view::View;
use ambit_model::workload::Workload;
use ambit_tls::{Lineage, Revocations};
use serde::Serialize;
use slab::Slab;

use crate::store::Store;

/// Entries asked in one turn of the thread: about a quarter of a millisecond of work, after which
/// traffic gets its turn.
const TURN: usize = 256;

/// What a connection is, as far as it must be asked again.
#[derive(Debug, Clone)]
pub enum Decided {
    /// It came in for a pod of this node.
    Inbound(Admitted),
    /// It came in for a pod of this node from another one, and no tunnel carries it.
    Neighbour(Admitted),
    /// It left a pod of this node.
    Outbound(Carried),
}

/// An outbound connection: both ends as they were when it was routed.
#[derive(Debug, Clone)]
pub struct Carried {
    /// The workload it came from.
    pub source: Arc<Workload>,
    /// The workload at the other end, if it is one of the mesh.
    pub upstream: Option<Arc<Workload>>,
    /// The address dialled.
    pub next_hop: SocketAddr,
    /// `HBONE`, `DOUBLEHBONE` or `TCP`.
    pub protocol: &'static str,
    /// Where the application wanted to go.
    pub wanted: SocketAddr,
}

/// What the admin page shows of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// The client.
    pub src: SocketAddr,
    /// Where the client wanted to go.
    pub original_dst: Option<String>,
    /// Where the bytes go.
    pub actual_dst: String,
    /// `HBONE`, `DOUBLEHBONE` or `TCP`.
    pub protocol: &'static str,
    /// Who the peer proved to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// A registered connection to be described: which pod's, in which direction.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Uid of the pod.
    pub pod: String,
    /// Came in, rather than left.
    pub inbound: bool,
    /// The rest.
    #[serde(flatten)]
    pub shown: Shown,
}

struct Entry {
    pod: Rc<str>,
    decided: Decided,
    source: SocketAddr,
    wanted: Option<Rc<str>>,
    /// The paths by which its peers proved who they are, where those may be revoked. One or two, and
    /// in most meshes none: no room for more.
    proofs: Box<[Lineage]>,
    /// Boxed, as few are told.
    ended: Option<Box<Refusal>>,
    waker: Option<Waker>,
}

/// The connections of one thread.
#[derive(Default)]
pub struct Live {
    /// Each is made with its connection: a table of them would have room for as many again.
    entries: RefCell<Slab<Box<Entry>>>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("open", &self.entries.borrow().len())
            .finish()
    }
}

/// A connection's place in the registry. Dropping it takes the connection out.
pub struct Guard {
    live: Rc<Live>,
    key: usize,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("key", &self.key).finish()
    }
}

impl Live {
    /// Registers a connection in the turn in which it was decided.
    ///
    /// `wanted` is what the client asked for where that is not an address.
    pub fn register(
        self: &Rc<Self>,
        pod: &Rc<str>,
        decided: Decided,
        source: SocketAddr,
        wanted: Option<Rc<str>>,
    ) -> Guard {
        let entry = Entry {
            pod: Rc::clone(pod),
            decided,
            source,
            wanted,
            proofs: Box::default(),
            ended: None,
            waker: None,
        };
        let key = self.entries.borrow_mut().insert(Box::new(entry));
        Guard {
            live: Rc::clone(self),
            key,
        }
    }

    /// Number of open connections.
    #[must_use]
    pub fn open(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Asks again for every connection, on the newest view; tells those that fail to end. Returns
    /// how many were told. `waits` says whether a pod may still wait for a policy that its record
    /// lists and that is not known: its connections then go on until another policy denies them.
    pub async fn recheck(&self, store: &Store, waits: impl Fn(&str) -> bool) -> usize {
        let judge = |view: &View, entry: &Entry| {
            let refusal = still_right(view, &entry.decided).err()?;
            let may_wait = refusal.reason == Reason::PolicyUnresolved && waits(&entry.pod);
            (!may_wait).then_some(refusal)
        };
        let turn = |from| store.read(|view| self.turn(from, |entry| judge(view, entry)));
        turns(turn).await
    }

    /// Asks again whether a certificate that a connection rests on was revoked, and tells those to end
    /// that rest on one. Returns how many.
    pub async fn recheck_proofs(&self, lists: &Revocations) -> usize {
        let judge = |entry: &Entry| revoked(lists, &entry.proofs).then(|| Reason::Revoked.into());
        turns(|from| self.turn(from, judge)).await
    }

    /// One turn: the entries from `from` on. Returns how many were told to end, and where to go on.
    fn turn(
        &self,
        from: usize,
        judge: impl Fn(&Entry) -> Option<Refusal>,
    ) -> (usize, Option<usize>) {
        let mut entries = self.entries.borrow_mut();
        let until = (from + TURN).min(entries.capacity());
        let mut wakers = Vec::new();
        for key in from..until {
            let Some(entry) = entries.get_mut(key) else {
                continue;
            };
            if entry.ended.is_some() {
                continue;
            }
            if let Some(refusal) = judge(entry) {
                entry.ended = Some(Box::new(refusal));
                wakers.push(entry.waker.take());
            }
        }
        let rest = (until < entries.capacity()).then_some(until);
        drop(entries);
        let told = wakers.len();
        wakers.into_iter().flatten().for_each(Waker::wake);
        (told, rest)
    }

    /// Tells every connection of `pod` to end.
    pub fn end(&self, pod: &str, reason: Reason) {
        let mut wakers = Vec::new();
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            if *entry.pod == *pod && entry.ended.is_none() {
                entry.ended = Some(Box::new(reason.into()));
                wakers.extend(entry.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Every open connection, for the admin page.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        self.entries
            .borrow()
            .iter()
            .map(|(_, entry)| listed(entry))
            .collect()
    }
}

/// Goes through all entries, and lets traffic have its turn in between.
async fn turns(mut turn: impl FnMut(usize) -> (usize, Option<usize>)) -> usize {
    let mut told = 0;
    let mut next = Some(0);
    while let Some(from) = next {
        let (count, rest) = turn(from);
        told += count;
        next = rest;
        tokio::task::yield_now().await;
    }
    told
}

fn revoked(lists: &Revocations, proofs: &[Lineage]) -> bool {
    proofs.iter().any(|proof| lists.revoke_lineage(proof))
}

impl Guard {
    /// Says by which path a peer of the connection proved who it is: it ends when a certificate of that
    /// path is revoked, at once if one has been by now.
    pub fn rests_on(&self, proof: &Lineage, lists: &Revocations) {
        if let Some(entry) = self.live.entries.borrow_mut().get_mut(self.key) {
            if lists.revoke_lineage(proof) {
                entry
                    .ended
                    .get_or_insert_with(|| Box::new(Reason::Revoked.into()));
            }
            let before = std::mem::take(&mut entry.proofs).into_iter();
            entry.proofs = before.chain([proof.clone()]).collect();
        }
    }

    /// Says where an outbound connection leads after all, once the name it was routed by is resolved.
    pub fn leads(&self, carried: Carried) {
        if let Some(entry) = self.live.entries.borrow_mut().get_mut(self.key) {
            entry.decided = Decided::Outbound(carried);
        }
    }

    /// Waits until the connection may not go on, and says why. Cancel safe.
    pub async fn ended(&self) -> Refusal {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    /// The same for one poll: ready with why it may not go on, or wakes the task that asked last once
    /// it may not.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<Refusal> {
        let mut entries = self.live.entries.borrow_mut();
        let Some(entry) = entries.get_mut(self.key) else {
            return Poll::Ready(Reason::Bug.into());
        };
        if let Some(refusal) = &entry.ended {
            return Poll::Ready(Refusal::clone(refusal));
        }
        let waker = entry.waker.as_ref();
        if !waker.is_some_and(|waker| waker.will_wake(cx.waker())) {
            entry.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.live.entries.borrow_mut().try_remove(self.key);
    }
}

fn still_right(view: &View, decided: &Decided) -> Result<(), Refusal> {
    match decided {
        Decided::Inbound(admitted) | Decided::Neighbour(admitted) => {
            admit::still_admitted(view, admitted)
        }
        Decided::Outbound(carried) => still_carried(view, carried).map_err(Refusal::from),
    }
}

/// Whether an outbound connection still joins the two workloads it was made for.
///
/// Policies are enforced where a connection arrives. What may change at this end is who the ends
/// are: a source that has become somebody else, or an address that now is another workload's. That
/// a better route exists, or that the other end is going away, is no reason to cut a connection.
///
/// # Errors
/// Why it may not go on.
fn still_carried(view: &View, carried: &Carried) -> Result<(), Reason> {
    let changed = |known: &Workload| {
        let now = view.workload(&known.uid);
        now.is_some_and(|now| now.identity != known.identity)
    };
    if changed(&carried.source) {
        return Err(Reason::UnknownSource);
    }
    let Some(upstream) = &carried.upstream else {
        return Ok(());
    };
    if changed(upstream) {
        return Err(Reason::PeerIdentityMismatch);
    }
    let there = view.workload_at(&upstream.network, carried.next_hop.ip());
    let taken_over = |now: &Arc<Workload>| now.identity != upstream.identity;
    if view.workload(&upstream.uid).is_none() && there.is_some_and(taken_over) {
        return Err(Reason::PeerIdentityMismatch);
    }
    Ok(())
}

fn listed(entry: &Entry) -> Listed {
    let wanted = entry.wanted.as_deref().map(str::to_owned);
    let shown = match &entry.decided {
        Decided::Inbound(admitted) | Decided::Neighbour(admitted) => Shown {
            src: entry.source,
            original_dst: wanted,
            actual_dst: admitted.upstream().to_string(),
            protocol: match &entry.decided {
                Decided::Inbound(_) if admitted.peer().is_some() => "HBONE",
                _ => "TCP",
            },
            peer: admitted.peer().map(ToString::to_string),
        },
        Decided::Outbound(carried) => Shown {
            src: entry.source,
            original_dst: Some(carried.wanted.to_string()),
            actual_dst: carried.next_hop.to_string(),
            protocol: carried.protocol,
            peer: None,
        },
    };
    Listed {
        pod: entry.pod.to_string(),
        inbound: !matches!(entry.decided, Decided::Outbound(_)),
        shown,
    }
}

#[cfg(test)]
mod tests;
