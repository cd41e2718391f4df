//! Drives every certificate's life.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use ambit_model::identity::Identity;
use ambit_tls::{Rejected, Svid};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, FuturesUnordered};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::certificates::{Entry, Shared};
use crate::issuer::{IssueError, Issued, Issuer};
use crate::state::Validity;

/// Requests to the authority at once. A node's first certificates arrive in a few rounds, and an
/// authority of a large mesh is not buried by one node.
const CONCURRENT: usize = 8;
/// Longest time of one request: connecting takes up to 5 s of it.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Longest sleep. Certificates live by the wall clock and sleeping goes by another; looking every
/// half minute bounds what a jump of the wall clock can do.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Keeps certificates up to date. Run it once, on the control runtime.
#[derive(Debug)]
pub struct Renewer {
    shared: Arc<Shared>,
}

impl Renewer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Requests what is due from `issuer`, for ever. Dropping the future ends it.
    pub async fn run(self, issuer: impl Issuer) -> Infallible {
        let mut running = FuturesUnordered::new();
        let mut following = FuturesUnordered::new();
        loop {
            while running.len() < CONCURRENT {
                let Some(entry) = self.most_urgent() else {
                    break;
                };
                running.push(attempt(&issuer, entry));
            }
            let sleep = self.sleep();
            tokio::select! {
                Some((entry, outcome, successors)) = running.next(), if !running.is_empty() => {
                    let followed = successors.and_then(|stream| self.follow(&entry, stream));
                    let source = match followed {
                        Some(_) => Source::Stream,
                        None => Source::Answer,
                    };
                    self.finish(&entry, outcome, source);
                    following.extend(followed.map(Follower::next));
                }
                Some(told) = following.next(), if !following.is_empty() => {
                    following.extend(self.told(told).map(Follower::next));
                }
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(sleep), if running.len() < CONCURRENT => {}
            }
        }
    }

    fn follow(&self, entry: &Arc<Entry>, successors: Successors) -> Option<Follower> {
        let ended = self.shared.follow(entry)?;
        Some(Follower {
            entry: Arc::clone(entry),
            successors,
            ended,
        })
    }

    /// What came of following; whether to go on.
    fn told(&self, told: Told) -> Option<Follower> {
        match told {
            Told::Unwanted => None,
            Told::Successor(follower, outcome) => {
                self.finish(&follower.entry, outcome, Source::Unasked);
                Some(follower)
            }
            Told::Ended(entry) => {
                let mut state = entry.state.lock();
                state.follower = None;
                // What it said last is why, and then the next attempt is planned already.
                let silent = state.last_error.is_none();
                drop(state);
                if silent {
                    self.finish(&entry, Err(IssueError::Ended), Source::Unasked);
                }
                None
            }
        }
    }

    /// Begins the attempt that is due and most urgent: somebody waits for it, then there is no
    /// certificate, then the earliest expiry.
    fn most_urgent(&self) -> Option<Arc<Entry>> {
        let now = self.shared.clock.now();
        let entries = self.shared.entries.lock();
        let due = entries.values().filter_map(|entry| {
            let state = entry.state.lock();
            let due = state.life.due(now).filter(|at| *at <= now)?;
            let valid = state.life.expiry().filter(|end| *end > now);
            let unwanted = valid.is_some() || entry.waiting.load(Relaxed) == 0;
            Some(((unwanted, valid, due), entry))
        });
        let (_, entry) = due.min_by_key(|(urgency, _)| *urgency)?;
        entry.state.lock().life.begin();
        Some(entry.clone())
    }

    /// Until when nothing becomes due.
    fn sleep(&self) -> Duration {
        let now = self.shared.clock.now();
        let entries = self.shared.entries.lock();
        let dues = entries
            .values()
            .filter_map(|entry| entry.state.lock().life.due(now));
        let until = |at: SystemTime| at.duration_since(now).unwrap_or_default();
        dues.map(until)
            .min()
            .unwrap_or(LONGEST_SLEEP)
            .min(LONGEST_SLEEP)
    }

    fn finish(&self, entry: &Entry, outcome: Result<Arc<Svid>, IssueError>, source: Source) {
        let now = self.shared.clock.now();
        let outcome = outcome.and_then(|svid| fit(svid, &entry.identity, now));
        let random = fastrand::u64(..);
        let mut state = entry.state.lock();
        let identity = &entry.identity;
        match outcome {
            Ok(svid) => {
                let validity = Validity {
                    not_before: svid.not_before(),
                    not_after: svid.not_after(),
                };
                match source {
                    Source::Answer => state.life.issued(validity, now, random),
                    Source::Stream | Source::Unasked => state.life.followed(validity, now, random),
                }
                state.last_error = None;
                // What is open on a certificate is not moved to another for nothing.
                let current = entry.current.load_full();
                if current.is_none_or(|current| !current.is_same(&svid)) {
                    tracing::info!(%identity, serial = svid.serial(), "certificate issued");
                    entry.current.store(Some(svid));
                }
            }
            Err(error) => {
                match source {
                    Source::Unasked => state.life.lost(now, random),
                    Source::Answer | Source::Stream => state.life.failed(now, random),
                }
                let phase = state.life.phase(now);
                tracing::warn!(%identity, %error, ?phase, "no new certificate");
                state.last_error = Some(Arc::new(error));
            }
        }
        drop(state);
        entry.attempts.send_modify(|count| *count += 1);
    }
}

/// How something came to be known.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// It was asked for, and has to be again.
    Answer,
    /// It was asked for, and successors come by themselves.
    Stream,
    /// It came by itself.
    Unasked,
}

/// A certificate that may be used: for whom it was asked for, and as peers would see it.
fn fit(svid: Arc<Svid>, wanted: &Identity, now: SystemTime) -> Result<Arc<Svid>, IssueError> {
    if svid.identity() != wanted {
        return Err(IssueError::WrongIdentity(svid.identity().clone()));
    }
    match svid.check(now) {
        Ok(()) if svid.not_after() > now => Ok(svid),
        // The moment of its end still passes RFC 5280; it is of no use to us.
        Ok(()) => Err(IssueError::Unfit(Rejected::Expired)),
        Err(broken) => Err(IssueError::Unfit(broken)),
    }
}

type Successors = BoxStream<'static, Result<Arc<Svid>, IssueError>>;
type Outcome = Result<Arc<Svid>, IssueError>;

/// One attempt, which ends. Its time over, a stream that was opened is kept: what it was opened for may still come.
async fn attempt(
    issuer: &impl Issuer,
    entry: Arc<Entry>,
) -> (Arc<Entry>, Outcome, Option<Successors>) {
    let deadline = Instant::now() + ATTEMPT;
    let late = || IssueError::Timeout(ATTEMPT);
    let subject = entry.subject();
    let issued = timeout_at(deadline, issuer.issue(&subject)).await;
    let mut successors = match issued.unwrap_or_else(|_elapsed| Err(late())) {
        Err(error) => return (entry, Err(error), None),
        Ok(Issued::Once(svid)) => return (entry, Ok(svid), None),
        Ok(Issued::Followed(successors)) => successors,
    };
    match timeout_at(deadline, successors.next()).await {
        Err(_elapsed) => (entry, Err(late()), Some(successors)),
        Ok(Some(outcome)) => (entry, outcome, Some(successors)),
        Ok(None) => (entry, Err(IssueError::Ended), None),
    }
}

/// Hears what an issuer tells by itself.
struct Follower {
    entry: Arc<Entry>,
    successors: Successors,
    /// Nobody wants it any more, or another has taken its place.
    ended: oneshot::Receiver<()>,
}

enum Told {
    Successor(Follower, Outcome),
    /// By the issuer.
    Ended(Arc<Entry>),
    /// By us.
    Unwanted,
}

impl Follower {
    async fn next(mut self) -> Told {
        tokio::select! {
            biased;
            _ = &mut self.ended => Told::Unwanted,
            told = self.successors.next() => match told {
                Some(outcome) => Told::Successor(self, outcome),
                None => Told::Ended(self.entry),
            },
        }
    }
}
