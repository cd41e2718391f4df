//! Is the peer still there?

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep};

use crate::settings::{PROBE, Settings};

/// Watches a connection's quiet times. A connection on which anything arrives is never asked: data
/// is as good a sign of life as an answer.
#[derive(Debug)]
pub(crate) struct Keepalive {
    timer: Pin<Box<Sleep>>,
    interval: std::time::Duration,
    limit: u32,
    quiet: u32,
    seen: u64,
}

impl Keepalive {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            timer: Box::pin(sleep(settings.ping_interval)),
            interval: settings.ping_interval,
            limit: settings.quiet_intervals,
            quiet: 0,
            seen: 0,
        }
    }

    /// Ready when the peer is taken for dead. `received` counts all bytes of the connection; `ask` asks the peer for a sign of life.
    pub(crate) fn poll_dead(
        &mut self,
        cx: &mut Context<'_>,
        received: u64,
        mut ask: impl FnMut(),
    ) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            self.quiet = if received == self.seen {
                self.quiet + 1
            } else {
                0
            };
            self.seen = received;
            if self.quiet >= self.limit {
                return Poll::Ready(());
            }
            if self.quiet > 0 {
                ask();
            }
            self.timer.as_mut().reset(Instant::now() + self.interval);
        }
        Poll::Pending
    }

    /// The peer is being asked, and is taken for dead if nothing comes within [`PROBE`].
    pub(crate) fn probe(&mut self, received: u64) {
        self.seen = received;
        self.quiet = self.limit.saturating_sub(1);
        let soon = Instant::now() + PROBE.min(self.interval);
        self.timer.as_mut().reset(soon);
    }
}
