//! Waiting for something to become true, with an end.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a condition is looked at. Short beside anything a person would notice, long beside the
/// cost of a look.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `look` returns `Ok`, and returns what it returned.
///
/// # Panics
///
/// After `bound`, with what was waited for and the last answer.
#[track_caller]
pub fn eventually<T, E: Debug>(
    bound: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(last) if start.elapsed() > bound => {
                panic!("not within {bound:?}: {what}; last seen: {last:?}")
            }
            Err(_) => pause(),
        }
    }
}

/// Waits until `look` is true.
///
/// # Panics
///
/// After `bound`.
#[track_caller]
pub fn eventually_true(bound: Duration, what: &str, mut look: impl FnMut() -> bool) {
    eventually(bound, what, || look().then_some(()).ok_or("not yet"));
}

/// Looks again and again for all of `during`, and fails at the first look that is false: for what
/// must never happen.
///
/// # Panics
///
/// At the first false look.
#[track_caller]
pub fn always(during: Duration, what: &str, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < during {
        assert!(look(), "after {:?}: not {what}", start.elapsed());
        pause();
    }
}

/// Until the next look. Tests' own threads serve nobody, so they may sleep.
#[expect(clippy::disallowed_methods, reason = "no data-plane thread")]
pub fn pause() {
    std::thread::sleep(LOOK);
}
