//! How long to wait before the next attempt. Pure: randomness is an argument.

use std::time::Duration;

/// Waits that double from `first` up to `most`, each with jitter.
///
/// Jitter takes away up to half of each wait, so that many proxies that lost one control plane
/// at the same moment do not all come back at the same moment.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// A `random` that takes nothing away: the whole wait.
    pub const WHOLE: u64 = 1024;

    /// Starts at `first` and never waits longer than `most`.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            failures: 0,
        }
    }

    /// The wait after one more failure. `random` is a uniformly random number.
    pub fn next(&mut self, random: u64) -> Duration {
        // Doubling 32 times exceeds any sensible `most`; the cap keeps the shift defined.
        let doubled = self
            .first
            .saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1).min(31);
        let whole = doubled.min(self.most);
        let half = whole / 2;
        // A share of the half in steps of 1/1024: finer jitter spreads nothing further.
        let share = u32::try_from(random % 1025).unwrap_or(0);
        whole - half + half * share / 1024
    }

    /// After a success: the next failure waits `first` again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success, as far as they changed the wait.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{any, prop_assert, proptest};

    use super::Backoff;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn doubles_up_to_the_most_and_starts_again_after_success() {
        let mut backoff = Backoff::new(10 * MS, 100 * MS);
        let waits: Vec<_> = (0..6)
            .map(|_| backoff.next(Backoff::WHOLE).as_millis())
            .collect();
        assert_eq!(waits, [10, 20, 40, 80, 100, 100]);
        backoff.reset();
        assert_eq!(backoff.next(Backoff::WHOLE), 10 * MS);
    }

    proptest! {
        #[test]
        fn jitter_takes_at_most_half(first in 1u64..10_000, most in 1u64..100_000, randoms in proptest::collection::vec(any::<u64>(), 1..80)) {
            let (first, most) = (Duration::from_millis(first), Duration::from_millis(most));
            let mut backoff = Backoff::new(first, most);
            for (index, random) in randoms.into_iter().enumerate() {
                let full = first.saturating_mul(1 << index.min(20)).min(most);
                let wait = backoff.next(random);
                prop_assert!(wait <= full);
                prop_assert!(wait >= full / 2);
            }
        }
    }
}
