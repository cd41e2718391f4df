//! What everybody holds: the certificates of this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use ambit_model::identity::Identity;
use ambit_runtime::clock::Clock;
use ambit_tls::Svid;
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use crate::dump::CertificateDump;
use crate::health::Health;
use crate::renew::Renewer;
use crate::state::Life;
use crate::{CertificateError, IssueError, Subject};

/// Longest wait for a first certificate. A connection waits no longer than this for its identity.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Most identities at once. A node has a few hundred pods at most, each with one identity.
const MAX_IDENTITIES: usize = 4096;

/// Most pods of one identity that its issuer is told of. What an issuer needs is one of them.
const MAX_PODS: usize = 64;

/// The certificates of this process. Cheap to clone; usable from any thread.
#[derive(Debug, Clone)]
pub struct Certificates {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) entries: Mutex<BTreeMap<Identity, Arc<Entry>>>,
    /// Wakes the renewer: something new is due.
    pub(crate) wake: Notify,
}

/// All there is about one identity.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) identity: Identity,
    pub(crate) current: ArcSwapOption<Svid>,
    pub(crate) state: Mutex<State>,
    /// Callers that have nothing until an attempt succeeds.
    pub(crate) waiting: AtomicUsize,
    /// Counts finished attempts.
    pub(crate) attempts: watch::Sender<u64>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) life: Life,
    pub(crate) last_error: Option<Arc<IssueError>>,
    /// Dropping it ends what follows the issuer's stream of successors.
    pub(crate) follower: Option<oneshot::Sender<()>>,
    leases: usize,
    /// The pods among the holders of leases, one entry for each lease.
    pods: Vec<Arc<str>>,
    /// Kept without a lease, by [`Certificates::get`].
    kept: bool,
}

impl Certificates {
    /// Empty, and the task that fills it: run it on the control runtime.
    pub fn new(clock: Clock) -> (Self, Renewer) {
        let shared = Shared {
            clock,
            entries: Mutex::default(),
            wake: Notify::new(),
        };
        let certificates = Self {
            shared: Arc::new(shared),
        };
        let renewer = Renewer::new(certificates.shared.clone());
        (certificates, renewer)
    }

    /// The certificate of `identity`, waiting for a first one. It is kept up to date from then on,
    /// until [`Certificates::release`].
    ///
    /// # Errors
    /// At once when the last attempt failed and the next is not due yet; after 10 s when there is
    /// no answer. See [`CertificateError`].
    pub async fn get(&self, identity: &Identity) -> Result<Arc<Svid>, CertificateError> {
        let entry = self.entry(identity, |state| state.kept = true)?;
        self.wait(&entry).await
    }

    /// The valid certificate of `identity`, if there is one now. Asks nobody.
    pub fn peek(&self, identity: &Identity) -> Option<Arc<Svid>> {
        let entry = self.shared.entries.lock().get(identity).cloned()?;
        entry.valid(self.shared.clock.now())
    }

    /// Keeps a certificate for `identity` for as long as the lease lives.
    ///
    /// # Errors
    /// When there are too many identities.
    pub fn lease(&self, identity: &Identity) -> Result<Lease, CertificateError> {
        let entry = self.entry(identity, |state| state.leases += 1)?;
        Ok(Lease {
            certificates: self.clone(),
            entry,
            pod: None,
        })
    }

    /// As [`Certificates::lease`], for a pod of this node by its uid: an issuer may know workloads by pods.
    ///
    /// # Errors
    /// As [`Certificates::lease`].
    pub fn lease_for(&self, identity: &Identity, pod: &str) -> Result<Lease, CertificateError> {
        let pod: Arc<str> = pod.into();
        let now = self.shared.clock.now();
        let entry = self.entry(identity, |state| {
            state.leases += 1;
            if !state.pods.contains(&pod) && state.life.is_failing(now) {
                // Perhaps because the issuer knows none of the others.
                state.life.hasten(now);
            }
            state.pods.push(Arc::clone(&pod));
        })?;
        self.shared.wake.notify_one();
        Ok(Lease {
            certificates: self.clone(),
            entry,
            pod: Some(pod),
        })
    }

    /// Forgets `identity` unless a lease holds it.
    pub fn release(&self, identity: &Identity) {
        self.change(identity, |state| state.kept = false);
    }

    /// What there is, for people, by identity.
    pub fn dump(&self) -> Vec<CertificateDump> {
        let now = self.shared.clock.now();
        let entries: Vec<_> = self.shared.entries.lock().values().cloned().collect();
        entries
            .iter()
            .map(|entry| CertificateDump::of(entry, now))
            .collect()
    }

    /// How it stands with all of them.
    pub fn health(&self) -> Health {
        let now = self.shared.clock.now();
        let entries: Vec<_> = self.shared.entries.lock().values().cloned().collect();
        let mut health = Health::default();
        for entry in entries {
            match entry.valid(now) {
                Some(svid) => {
                    health.valid += 1;
                    let first = health.first_end.unwrap_or(svid.not_after());
                    health.first_end = Some(first.min(svid.not_after()));
                }
                None => health.missing += 1,
            }
            let state = entry.state.lock();
            health.failing += usize::from(state.last_error.is_some());
            health.followed += usize::from(state.follower.is_some());
        }
        health
    }

    /// The entry, made if it is new, after `mark`.
    fn entry(
        &self,
        identity: &Identity,
        mark: impl FnOnce(&mut State),
    ) -> Result<Arc<Entry>, CertificateError> {
        let mut entries = self.shared.entries.lock();
        if let Some(entry) = entries.get(identity) {
            mark(&mut entry.state.lock());
            return Ok(entry.clone());
        }
        if entries.len() >= MAX_IDENTITIES {
            return Err(CertificateError::TooMany(identity.clone(), MAX_IDENTITIES));
        }
        let life = Life::new(self.shared.clock.now());
        let mut state = State {
            life,
            last_error: None,
            follower: None,
            leases: 0,
            pods: Vec::new(),
            kept: false,
        };
        mark(&mut state);
        let entry = Arc::new(Entry {
            identity: identity.clone(),
            current: ArcSwapOption::empty(),
            state: Mutex::new(state),
            waiting: AtomicUsize::new(0),
            attempts: watch::Sender::new(0),
        });
        entries.insert(identity.clone(), entry.clone());
        drop(entries);
        self.shared.wake.notify_one();
        Ok(entry)
    }

    /// Changes an entry and removes it when nobody wants it any more.
    fn change(&self, identity: &Identity, change: impl FnOnce(&mut State)) {
        let mut entries = self.shared.entries.lock();
        let Some(entry) = entries.get(identity) else {
            return;
        };
        let mut state = entry.state.lock();
        change(&mut state);
        let unwanted = state.leases == 0 && !state.kept;
        drop(state);
        if unwanted && let Some(entry) = entries.remove(identity) {
            entry.state.lock().follower = None;
        }
    }

    async fn wait(&self, entry: &Arc<Entry>) -> Result<Arc<Svid>, CertificateError> {
        let mut attempts = entry.attempts.subscribe();
        let waited = async {
            loop {
                attempts.borrow_and_update();
                if let Some(answer) = entry.answer(self.shared.clock.now()) {
                    return answer;
                }
                if attempts.changed().await.is_err() {
                    // The entry owns the sender and we own the entry.
                    std::future::pending::<()>().await;
                }
            }
        };
        let _counted = Waiting::new(entry);
        tokio::time::timeout(LONGEST_WAIT, waited)
            .await
            .unwrap_or_else(|_elapsed| {
                let identity = entry.identity.clone();
                Err(CertificateError::Timeout {
                    identity,
                    waited: LONGEST_WAIT,
                })
            })
    }
}

impl Shared {
    /// Lets the answer be heard by who follows the issuer's successors to this entry, in place of who did before; nothing
    /// if the entry is not wanted any more.
    pub(crate) fn follow(&self, entry: &Arc<Entry>) -> Option<oneshot::Receiver<()>> {
        let entries = self.entries.lock();
        let current = entries.get(&entry.identity);
        current.filter(|current| Arc::ptr_eq(current, entry))?;
        let (follower, ended) = oneshot::channel();
        entry.state.lock().follower = Some(follower);
        Some(ended)
    }
}

impl Entry {
    /// Whom the issuer is asked for.
    pub(crate) fn subject(&self) -> Subject {
        let state = self.state.lock();
        let mut pods: Vec<_> = state.pods.iter().map(ToString::to_string).collect();
        drop(state);
        pods.sort_unstable();
        pods.dedup();
        pods.truncate(MAX_PODS);
        Subject {
            identity: self.identity.clone(),
            pods,
        }
    }

    pub(crate) fn valid(&self, now: SystemTime) -> Option<Arc<Svid>> {
        self.current
            .load_full()
            .filter(|svid| svid.not_after() > now)
    }

    /// What a caller gets now; nothing while an attempt may bring something soon.
    fn answer(&self, now: SystemTime) -> Option<Result<Arc<Svid>, CertificateError>> {
        if let Some(svid) = self.valid(now) {
            return Some(Ok(svid));
        }
        let state = self.state.lock();
        let reason = state
            .last_error
            .clone()
            .filter(|_| state.life.is_failing(now))?;
        Some(Err(CertificateError::Unavailable {
            identity: self.identity.clone(),
            reason,
        }))
    }
}

/// Counts a caller as waiting, also when it gives up.
struct Waiting<'a>(&'a Entry);

impl<'a> Waiting<'a> {
    fn new(entry: &'a Entry) -> Self {
        entry.waiting.fetch_add(1, Relaxed);
        Self(entry)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// Keeps the certificate of one identity for as long as it lives.
#[derive(Debug)]
pub struct Lease {
    certificates: Certificates,
    entry: Arc<Entry>,
    pod: Option<Arc<str>>,
}

impl Lease {
    /// Whose.
    pub fn identity(&self) -> &Identity {
        &self.entry.identity
    }

    /// The valid certificate, if there is one now. Takes no lock and wakes nobody.
    pub fn current(&self) -> Option<Arc<Svid>> {
        self.entry.valid(self.certificates.shared.clock.now())
    }

    /// The certificate, waiting for a first one.
    ///
    /// # Errors
    /// As [`Certificates::get`].
    pub async fn get(&self) -> Result<Arc<Svid>, CertificateError> {
        match self.current() {
            Some(svid) => Ok(svid),
            None => self.certificates.wait(&self.entry).await,
        }
    }

    /// Changes whenever an attempt has ended, so that who holds connections can look whether the
    /// certificate is another one.
    pub fn attempts(&self) -> watch::Receiver<u64> {
        self.entry.attempts.subscribe()
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        let mut state = self.entry.state.lock();
        state.leases += 1;
        state.pods.extend(self.pod.clone());
        drop(state);
        Self {
            certificates: self.certificates.clone(),
            entry: self.entry.clone(),
            pod: self.pod.clone(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.certificates.change(&self.entry.identity, |state| {
            state.leases -= 1;
            let pods = &mut state.pods;
            if let Some(at) = pods.iter().position(|pod| Some(pod) == self.pod.as_ref()) {
                pods.swap_remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests;
