//! Work counted over a stretch of time, with the CPU time that something used meanwhile.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Warming up: caches, tunnels, buffers.
pub const WARM: Duration = Duration::from_millis(300);

/// CPU time used so far by what stands between client and server.
pub type Meter<'a> = &'a dyn Fn() -> Duration;

/// What was done in a stretch of time.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// How often, or how many bytes.
    pub count: u64,
    /// In this time.
    pub took: Duration,
    /// CPU time used meanwhile.
    pub cpu: Duration,
}

impl Window {
    /// A second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }

    /// CPU time of one, in seconds.
    #[must_use]
    pub fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() / self.count as f64
    }
}

/// Runs `work` on several threads at once until time is over; each adds to the count as it goes.
///
/// # Errors
///
/// Work failed.
pub fn count(
    at_once: usize,
    during: Duration,
    meter: Meter<'_>,
    work: impl Fn(&AtomicBool, &AtomicU64) -> io::Result<()> + Sync,
) -> Result<Window> {
    let (ending, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..at_once)
            .map(|_| scope.spawn(|| work(&ending, &count)))
            .collect();
        pause(WARM);
        let (start, used, before) = (Instant::now(), meter(), count.load(Ordering::Relaxed));
        pause(during);
        let (took, cpu, after) = (start.elapsed(), meter(), count.load(Ordering::Relaxed));
        ending.store(true, Ordering::Relaxed);
        for thread in running {
            thread.join().expect("no panic")?;
        }
        Ok(Window {
            count: after - before,
            took,
            cpu: cpu.saturating_sub(used),
        })
    })
}

/// Lets the programs that were just started come to rest: certificates have come, and whoever gives
/// back what only its start needed has done so.
pub fn settle() {
    /// Ours do after ten seconds, allocators after ten, too.
    const SETTLED: Duration = Duration::from_secs(20);
    pause(SETTLED);
}

/// Lets time pass on a thread that serves nobody.
#[expect(clippy::disallowed_methods, reason = "no data-plane thread")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
