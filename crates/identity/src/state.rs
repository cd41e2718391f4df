//! The life of one certificate, without clock, randomness or I/O.

use std::time::{Duration, SystemTime};

use ambit_runtime::backoff::Backoff;

/// Pauses after a failure with nothing valid in hand: connections are failing, so attempts come
/// often, but a node of a hundred identities still asks a struggling authority only some ten
/// times a second.
const URGENT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Pauses after a failure with a valid certificate in hand; 150 s as in Istio's proxies.
const CALM: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(150));
/// A wall clock that goes back by more than this was set, and what was planned by it means nothing. Less
/// is the correction of a clock that was right, and only puts off what was planned by as much.
const SET_BACK: Duration = Duration::from_secs(60);
/// Renewals are never closer than this, whatever lifetimes the authority gives.
const LEAST_LIFE: Duration = Duration::from_secs(1);

/// What a certificate's life is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// There never was one; the next attempt is planned.
    Absent,
    /// There never was one; it is being requested.
    Requesting,
    /// In use.
    Valid,
    /// In use, while its successor is being requested.
    Renewing,
    /// Its time is over and it has no successor yet.
    Expired,
}

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Start.
    pub not_before: SystemTime,
    /// End; not valid at this moment any more.
    pub not_after: SystemTime,
}

/// The life of the certificate of one identity.
#[derive(Debug, Clone)]
pub struct Life {
    held: Option<Validity>,
    attempt: Attempt,
    urgent: Backoff,
    calm: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Planned {
        at: SystemTime,
        /// When this was planned.
        since: SystemTime,
    },
    Running,
}

impl Life {
    /// Begins without a certificate and with an attempt due at once.
    pub fn new(now: SystemTime) -> Self {
        Self {
            held: None,
            attempt: Attempt::Planned {
                at: now,
                since: now,
            },
            urgent: Backoff::new(URGENT.0, URGENT.1),
            calm: Backoff::new(CALM.0, CALM.1),
        }
    }

    /// What it is at.
    pub fn phase(&self, now: SystemTime) -> Phase {
        match (self.held, self.attempt) {
            (None, Attempt::Planned { .. }) => Phase::Absent,
            (None, Attempt::Running) => Phase::Requesting,
            (Some(held), _) if now >= held.not_after => Phase::Expired,
            (Some(_), Attempt::Planned { .. }) => Phase::Valid,
            (Some(_), Attempt::Running) => Phase::Renewing,
        }
    }

    /// When the next attempt is due, as seen `now`; nothing while one is running. At once if the clock
    /// was set back since it was planned: by the new time it might be years away.
    pub fn due(&self, now: SystemTime) -> Option<SystemTime> {
        match self.attempt {
            Attempt::Planned { since, .. } if now + SET_BACK < since => Some(now),
            Attempt::Planned { at, .. } => Some(at),
            Attempt::Running => None,
        }
    }

    /// Orders lives that are due: the one without a certificate, then the one that expires first.
    pub fn expiry(&self) -> Option<SystemTime> {
        self.held.map(|held| held.not_after)
    }

    /// Whether a failure stands between now and the next attempt, with nothing valid in hand.
    pub fn is_failing(&self, now: SystemTime) -> bool {
        let waiting = self.due(now).is_some_and(|at| at > now);
        waiting && matches!(self.phase(now), Phase::Absent | Phase::Expired)
    }

    /// An attempt begins.
    pub fn begin(&mut self) {
        self.attempt = Attempt::Running;
    }

    /// The attempt brought a certificate. It is renewed at 40 to 50 % of its life: before the half,
    /// so that there is a long time for retries, and spread, so that the certificates of a node,
    /// which began together, do not all renew together. Reckoned from now if that is earlier, since the
    /// authority's clock or ours may be wrong.
    pub fn issued(&mut self, validity: Validity, now: SystemTime, random: u64) {
        let life = validity
            .not_after
            .duration_since(validity.not_before)
            .unwrap_or_default();
        // Thousandths of the life.
        let share = 400 + u32::try_from(random % 101).unwrap_or(0);
        let share = (life / 1000).saturating_mul(share);
        let renewal = validity.not_before.min(now) + share;
        self.held = Some(validity);
        self.plan(renewal.max(now + LEAST_LIFE), now);
        self.urgent.reset();
        self.calm.reset();
    }

    /// The issuer gave a certificate and will tell of its successors by itself. In case that it does not, it is asked when 60
    /// to 70 % of what is left of the life has passed, and so on: issuers tell at the half.
    pub fn followed(&mut self, validity: Validity, now: SystemTime, random: u64) {
        let left = validity.not_after.duration_since(now).unwrap_or_default();
        // Thousandths of what is left.
        let share = 600 + u32::try_from(random % 101).unwrap_or(0);
        let wait = (left / 1000).saturating_mul(share).max(LEAST_LIFE);
        self.held = Some(validity);
        self.plan(now + wait, now);
        self.urgent.reset();
        self.calm.reset();
    }

    /// The issuer will not tell of successors any more, or told of something that is none. An attempt that is under way mends
    /// it; without one this is as good as one that failed.
    pub fn lost(&mut self, now: SystemTime, random: u64) {
        if self.attempt != Attempt::Running {
            self.failed(now, random);
        }
    }

    /// What made attempts fail may have changed: the next one need not wait.
    pub fn hasten(&mut self, now: SystemTime) {
        if self.attempt != Attempt::Running {
            self.plan(now, now);
        }
    }

    /// The attempt failed.
    pub fn failed(&mut self, now: SystemTime, random: u64) {
        let valid_until = self
            .held
            .map(|held| held.not_after)
            .filter(|end| *end > now);
        let next = match valid_until {
            None => now + self.urgent.next(random),
            // Not after the end: from then on it is urgent. And not in a spin just before it.
            Some(end) => (now + self.calm.next(random)).min(end.max(now + URGENT.0)),
        };
        self.plan(next, now);
    }

    fn plan(&mut self, at: SystemTime, since: SystemTime) {
        self.attempt = Attempt::Planned { at, since };
    }
}

#[cfg(test)]
mod tests;
