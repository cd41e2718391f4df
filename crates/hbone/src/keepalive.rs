//! Is the peer still there?

use std::pin::Pin;
use std::task::{Context, Poll};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::settings::{PROBE, Settings};

/// Watches a connection's quiet times. A connection on which anything arrives is never asked: data
/// is as good a sign of life as an answer.
#[derive(Debug)]
pub(crate) struct Keepalive {
    ping: Option<PingPong>,
    asked: bool,
    timer: Pin<Box<Sleep>>,
    interval: std::time::Duration,
    limit: u32,
    quiet: u32,
    seen: u64,
}

impl Keepalive {
    pub(crate) fn new(ping: Option<PingPong>, settings: &Settings) -> Self {
        Self {
            ping,
            asked: false,
            timer: Box::pin(sleep(settings.ping_interval)),
            interval: settings.ping_interval,
            limit: settings.quiet_intervals,
            quiet: 0,
            seen: 0,
        }
    }

    /// Ready when the peer is taken for dead. `received` counts all bytes of the connection.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>, received: u64) -> Poll<()> {
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
                self.ask(cx);
            }
            self.timer.as_mut().reset(Instant::now() + self.interval);
        }
        Poll::Pending
    }

    /// Asks at once, and takes the peer for dead if nothing comes within [`PROBE`].
    pub(crate) fn probe(&mut self, cx: &mut Context<'_>, received: u64) {
        self.seen = received;
        self.quiet = self.limit.saturating_sub(1);
        self.ask(cx);
        let soon = Instant::now() + PROBE.min(self.interval);
        self.timer.as_mut().reset(soon);
    }

    fn ask(&mut self, cx: &mut Context<'_>) {
        let Some(ping) = &mut self.ping else { return };
        if self.asked && ping.poll_pong(cx).is_pending() {
            return; // one question at a time
        }
        self.asked = ping.send_ping(Ping::opaque()).is_ok();
    }
}
