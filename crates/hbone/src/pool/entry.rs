//! The tunnels and dials of one key.

use std::task::{Context, Poll};
use std::time::Duration;

use ambit_tls::Peer;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{CheckoutError, Limits};
use crate::client::{Place, Tunnel};

/// Where a stream can go.
pub(super) enum Seat<E> {
    /// Here.
    Free(Place),
    /// On what a dial in flight brings.
    Join(oneshot::Receiver<Result<Place, CheckoutError<E>>>),
    /// On what the caller is to dial, under this number.
    Dial(u64, oneshot::Receiver<Result<Place, CheckoutError<E>>>),
    /// Nowhere.
    Full,
}

/// The tunnels and dials of one key.
pub(super) struct Entry<E> {
    /// Oldest first.
    tunnels: Vec<Kept>,
    dials: Vec<Dial<E>>,
}

struct Kept {
    tunnel: Tunnel,
    retired: bool,
    /// Its peer was asked for a sign of life.
    probed: bool,
    /// When it last had a stream, as far as is known.
    used: Instant,
}

/// One dial in flight and who waits for it, first come first.
pub(super) struct Dial<E> {
    number: u64,
    waiters: Vec<oneshot::Sender<Result<Place, CheckoutError<E>>>>,
}

impl<E> Default for Entry<E> {
    fn default() -> Self {
        Self {
            tunnels: Vec::new(),
            dials: Vec::new(),
        }
    }
}

impl<E: Clone> Entry<E> {
    /// A place on the oldest tunnel that has one.
    pub(super) fn place(&mut self, limit: u32) -> Option<Place> {
        self.tunnels.retain(|kept| kept.tunnel.ended().is_none());
        let kept = self.tunnels.iter_mut().find(|kept| kept.has_place(limit))?;
        kept.used = Instant::now();
        Some(kept.tunnel.reserve())
    }

    /// A place among the waiters of a dial: of one in flight if it will have places enough.
    pub(super) fn wait(&mut self, number: u64, limits: &Limits) -> Seat<E> {
        let (answer, waiter) = oneshot::channel();
        if let Some(dial) = self
            .dials
            .iter_mut()
            .find_map(|dial| dial.with_room(limits.streams))
        {
            dial.waiters.push(answer);
            return Seat::Join(waiter);
        }
        if self.tunnels.len() + self.dials.len() >= limits.tunnels {
            return Seat::Full;
        }
        self.dials.push(Dial {
            number,
            waiters: vec![answer],
        });
        Seat::Dial(number, waiter)
    }

    pub(super) fn take_dial(&mut self, number: u64) -> Option<Dial<E>> {
        let at = self.dials.iter().position(|dial| dial.number == number)?;
        Some(self.dials.swap_remove(at))
    }

    /// Ready when nobody waits for a dial any more. Otherwise wakes when one of those who do leaves.
    pub(super) fn poll_abandoned(&mut self, number: u64, cx: &mut Context<'_>) -> Poll<()> {
        let dial = self.dials.iter_mut().find(|dial| dial.number == number);
        let mut waiters = dial.into_iter().flat_map(|dial| &mut dial.waiters);
        if waiters.all(|waiter| waiter.poll_closed(cx).is_ready()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    pub(super) fn add(&mut self, tunnel: Tunnel, now: Instant) {
        self.tunnels.push(Kept {
            tunnel,
            retired: false,
            probed: false,
            used: now,
        });
    }

    pub(super) fn retire(&mut self) {
        for kept in &mut self.tunnels {
            kept.retired = true;
        }
    }

    /// Retires the tunnels and asks each peer once whether it is there.
    pub(super) fn forsake(&mut self) {
        self.retire();
        for kept in self.tunnels.iter_mut().filter(|kept| !kept.probed) {
            kept.probed = true;
            kept.tunnel.probe();
        }
    }

    pub(super) fn close(self, reason: &'static str) {
        for kept in self.tunnels {
            kept.tunnel.abort(reason);
        }
        for dial in self.dials {
            for waiter in dial.waiters {
                // Fails only if nobody waits any more.
                let _ = waiter.send(Err(CheckoutError::Closed));
            }
        }
    }

    /// Ends the tunnels whose peer matches. Answers how many.
    pub(super) fn end(&self, reason: &'static str, matches: impl Fn(&Peer) -> bool) -> usize {
        let live = self
            .tunnels
            .iter()
            .filter(|kept| kept.tunnel.ended().is_none());
        let ended = live.filter(|kept| matches(kept.tunnel.peer()));
        ended.inspect(|kept| kept.tunnel.abort(reason)).count()
    }

    /// Drops what is over. False if nothing is left.
    pub(super) fn sweep(&mut self, now: Instant, idle: Duration) -> bool {
        self.tunnels.retain_mut(|kept| kept.stays(now, idle));
        !self.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tunnels.is_empty() && self.dials.is_empty()
    }

    pub(super) fn streams(&self) -> Vec<u32> {
        self.tunnels
            .iter()
            .map(|kept| kept.tunnel.live_streams())
            .collect()
    }

    pub(super) fn dials(&self) -> usize {
        self.dials.len()
    }
}

impl Kept {
    fn has_place(&self, limit: u32) -> bool {
        let limit = limit.min(self.tunnel.capacity());
        !self.retired && self.tunnel.live_streams() < limit && self.tunnel.is_ready()
    }

    fn stays(&mut self, now: Instant, idle: Duration) -> bool {
        if self.tunnel.ended().is_some() {
            return false;
        }
        if self.tunnel.live_streams() > 0 {
            self.used = now;
            return true;
        }
        !self.retired && self.tunnel.is_ready() && now.duration_since(self.used) < idle
    }
}

impl<E: Clone> Dial<E> {
    /// This dial, if its tunnel will have a place more than it has waiters.
    fn with_room(&mut self, limit: u32) -> Option<&mut Self> {
        self.waiters.retain(|waiter| !waiter.is_closed());
        let room = u32::try_from(self.waiters.len()).is_ok_and(|waiting| waiting < limit);
        room.then_some(self)
    }

    /// Answers every waiter.
    pub(super) fn answer(self, result: &Result<Tunnel, E>, limit: u32) {
        for waiter in self.waiters {
            let answer = match result {
                Ok(tunnel) if tunnel.live_streams() < limit => Ok(tunnel.reserve()),
                Ok(_) => Err(CheckoutError::Overloaded),
                Err(error) => Err(CheckoutError::Dial(error.clone())),
            };
            // Fails only if nobody waits any more; a place in it is given back.
            let _ = waiter.send(answer);
        }
    }
}
