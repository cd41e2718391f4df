//! Load at a fixed rate: requests are sent when it is time for them, not when the one before is answered.
//!
//! A slow answer then does not hide the requests that it holds up: their time counts from when they should have been
//! sent. What the machine's timer is late by, on a connection that was free, is not counted: it is no proxy's doing.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::window::{Meter, WARM, Window, pause};

/// The share of requests that must be answered in time: a few are on their way when time is over.
const KEPT: f64 = 0.95;

/// How much, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Requests a second, over all connections.
    pub rate: f64,
    /// After a short warming up.
    pub during: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Paced {
    /// Of every request, in order of length.
    times: Vec<Duration>,
    /// Requests that were answered in time, and the CPU time used meanwhile.
    pub window: Window,
}

impl Paced {
    /// Whether the rate was kept. If not, most requests only waited for others, and the CPU time is that of other work.
    #[must_use]
    pub fn kept_up(&self, pace: Pace) -> bool {
        self.window.count as f64 >= KEPT * pace.rate * pace.during.as_secs_f64()
    }

    /// The time that this share of requests does not exceed, in thousandths.
    ///
    /// # Errors
    ///
    /// There was no request.
    pub fn at(&self, thousandths: usize) -> Result<Duration> {
        let last = self.times.len().checked_sub(1).context("no request")?;
        let index = self.times.len() * thousandths / 1000;
        self.times
            .get(index.min(last))
            .copied()
            .context("a request")
    }
}

/// Sends requests over several connections in turn.
///
/// # Errors
///
/// A request fails.
pub fn run<C: Send>(
    connections: Vec<C>,
    pace: Pace,
    meter: Meter<'_>,
    request: impl Fn(&mut C) -> io::Result<()> + Sync,
) -> Result<Paced> {
    let between = Duration::from_secs_f64(1.0 / pace.rate);
    let each = between * u32::try_from(connections.len())?;
    // Threads start late and all at once; then it begins.
    let start = Instant::now() + Duration::from_millis(50);
    let (from, until) = (start + WARM, start + WARM + pace.during);
    let (mut times, window) = std::thread::scope(|scope| -> Result<_> {
        let mut running = Vec::new();
        for (index, mut connection) in connections.into_iter().enumerate() {
            let first = start + between * u32::try_from(index)?;
            let request = &request;
            running.push(scope.spawn(move || -> io::Result<(Vec<Duration>, u64)> {
                let (mut seen, mut in_time) = (Vec::new(), 0);
                let mut due = first;
                while due < until {
                    let begin = wait(due);
                    request(&mut connection)?;
                    if due >= from {
                        seen.push(begin.elapsed());
                        in_time += u64::from(Instant::now() <= until);
                    }
                    due += each;
                }
                Ok((seen, in_time))
            }));
        }
        pause(from.saturating_duration_since(Instant::now()));
        let (begun, used) = (Instant::now(), meter());
        pause(until.saturating_duration_since(Instant::now()));
        let (took, cpu) = (begun.elapsed(), meter().saturating_sub(used));
        let (mut times, mut count) = (Vec::new(), 0);
        for thread in running {
            let (mut seen, in_time) = thread.join().expect("no panic")?;
            times.append(&mut seen);
            count += in_time;
        }
        Ok((times, Window { count, took, cpu }))
    })?;
    times.sort_unstable();
    Ok(Paced { times, window })
}

/// Waits until it is time, and returns from when a request counts.
fn wait(due: Instant) -> Instant {
    let early = due.saturating_duration_since(Instant::now());
    if early.is_zero() {
        // The connection was not free in time.
        return due;
    }
    pause(early);
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Pace, run};
    use crate::window::pause;

    #[test]
    fn what_is_held_up_counts_from_when_it_was_due() {
        let pace = Pace {
            rate: 100.0,
            during: Duration::from_millis(500),
        };
        let begun = Instant::now();
        // One answer takes 200 ms, in which twenty more requests are due.
        let paced = run(vec![false], pace, &|| Duration::ZERO, |held| {
            if begun.elapsed() > Duration::from_millis(500) && !*held {
                *held = true;
                pause(Duration::from_millis(200));
            }
            Ok(())
        });
        let paced = paced.unwrap();
        assert!(
            (49..=51).contains(&paced.times.len()),
            "{}",
            paced.times.len()
        );
        let late = paced
            .times
            .iter()
            .filter(|time| **time > Duration::from_millis(50))
            .count();
        assert!(late >= 10, "{late} of {:?}", paced.times);
        assert!(paced.at(990).unwrap() >= Duration::from_millis(150));
        assert!(paced.at(0).unwrap() <= paced.at(500).unwrap());
    }

    #[test]
    fn says_when_the_rate_is_not_kept() {
        let pace = Pace {
            rate: 1000.0,
            during: Duration::from_millis(100),
        };
        let slow = |(): &mut ()| {
            pause(Duration::from_millis(4));
            Ok(())
        };
        let paced = run(vec![()], pace, &|| Duration::ZERO, slow).unwrap();
        assert!(!paced.kept_up(pace), "{}", paced.window.count);
        assert!(
            (99..=101).contains(&paced.times.len()),
            "all are counted: {}",
            paced.times.len()
        );
    }

    #[test]
    fn a_request_that_fails_is_told() {
        let pace = Pace {
            rate: 100.0,
            during: Duration::from_millis(20),
        };
        let failed = run(vec![(); 2], pace, &|| Duration::ZERO, |()| {
            Err(std::io::Error::other("refused"))
        });
        assert!(failed.unwrap_err().to_string().contains("refused"));
    }
}
