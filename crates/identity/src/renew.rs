//! Drives every certificate's life.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use ambit_tls::{Rejected, Svid};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use crate::certificates::{Entry, Shared};
use crate::issuer::{IssueError, Issuer};
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
        loop {
            while running.len() < CONCURRENT {
                let Some(entry) = self.most_urgent() else {
                    break;
                };
                running.push(attempt(&issuer, entry));
            }
            let sleep = self.sleep();
            tokio::select! {
                Some((entry, outcome)) = running.next(), if !running.is_empty() => {
                    self.finish(&entry, outcome);
                }
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(sleep), if running.len() < CONCURRENT => {}
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

    fn finish(&self, entry: &Entry, outcome: Result<Arc<Svid>, IssueError>) {
        let now = self.shared.clock.now();
        let outcome = outcome.and_then(|svid| match svid.check(now) {
            Ok(()) if svid.not_after() > now => Ok(svid),
            // The moment of its end still passes RFC 5280; it is of no use to us.
            Ok(()) => Err(IssueError::Unfit(Rejected::Expired)),
            Err(broken) => Err(IssueError::Unfit(broken)),
        });
        let random = fastrand::u64(..);
        let mut state = entry.state.lock();
        let identity = &entry.identity;
        match outcome {
            Ok(svid) => {
                let (not_before, not_after) = (svid.not_before(), svid.not_after());
                state.life.issued(
                    Validity {
                        not_before,
                        not_after,
                    },
                    now,
                    random,
                );
                state.last_error = None;
                tracing::info!(%identity, serial = svid.serial(), "certificate issued");
                entry.current.store(Some(svid));
            }
            Err(error) => {
                state.life.failed(now, random);
                let phase = state.life.phase(now);
                tracing::warn!(%identity, %error, ?phase, "no new certificate");
                state.last_error = Some(Arc::new(error));
            }
        }
        drop(state);
        entry.attempts.send_modify(|count| *count += 1);
    }
}

/// One attempt, which ends.
async fn attempt(
    issuer: &impl Issuer,
    entry: Arc<Entry>,
) -> (Arc<Entry>, Result<Arc<Svid>, IssueError>) {
    let issued = timeout(ATTEMPT, issuer.issue(&entry.identity)).await;
    let outcome = issued.unwrap_or(Err(IssueError::Timeout(ATTEMPT)));
    let outcome = outcome.and_then(|svid| match *svid.identity() == entry.identity {
        true => Ok(svid),
        false => Err(IssueError::WrongIdentity(svid.identity().clone())),
    });
    (entry, outcome)
}
