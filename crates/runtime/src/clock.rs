//! Time as a value, so that what depends on it can be tested without waiting.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Tells the wall-clock time: the system's, or a test's.
///
/// Only wall-clock time (certificate validity, log lines) is asked here. Timeouts use the
/// runtime's timer, which tests pause.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<Mutex<SystemTime>>>);

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands at `start` until its hand is moved.
    #[must_use]
    pub fn standing_at(start: SystemTime) -> (Self, Hand) {
        let time = Arc::new(Mutex::new(start));
        (Self(Some(Arc::clone(&time))), Hand(time))
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.0
            .as_ref()
            .map_or_else(SystemTime::now, |time| *time.lock())
    }

    /// The time now in whole seconds since 1970; zero before that.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        self.now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    }
}

/// Moves a standing clock.
#[derive(Debug)]
pub struct Hand(Arc<Mutex<SystemTime>>);

impl Hand {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }

    /// Sets the clock, forward or back.
    pub fn set(&self, to: SystemTime) {
        *self.0.lock() = to;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::Clock;

    #[test]
    fn a_standing_clock_moves_only_by_hand() {
        let (clock, hand) = Clock::standing_at(UNIX_EPOCH + Duration::from_secs(100));
        let copy = clock.clone();
        assert_eq!(clock.unix_seconds(), 100);
        hand.advance(Duration::from_secs(5));
        assert_eq!((clock.unix_seconds(), copy.unix_seconds()), (105, 105));
        assert!(Clock::system().unix_seconds() > 1_700_000_000);
    }
}
