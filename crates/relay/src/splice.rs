//! The bypass between two TCP connections: the kernel moves a long run of bytes by itself (splice(2)).
//!
//! # Theory of operation
//!
//! A direction begins by copying. When several reads in a row were large it is bulk: from then on a pipe is borrowed from the thread,
//! filled from the one socket and drained into the other. When nothing more comes, the empty pipe goes back, so a resting connection
//! holds none; a burst that was small ends the splicing, because a small message is copied as cheaply and with one call less.
//!
//! # Invariants
//!
//! * The pipe is filled only when it is empty, and drained only when it is not: so "would block" is always a socket's.
//! * At most one pipe's room is on its way in each direction; the sockets' own windows do the rest, as with copying.
//! * A pipe that still holds bytes is never used again.
//!
//! # Failure modes
//!
//! * No descriptor, no more pipes for this thread: copied; asked again after as many large reads as at first.
//! * The kernel refuses to splice: copied from then on, with what the pipe held first.
//! * An error that the kernel hid behind a part that was sent: see [`Pipe::drain`] and [`TcpSink::drain`].
//!
//! # Not done here
//!
//! A BPF program on a map of sockets (sockmap) could pass the bytes on without waking this process at all. Loading one takes
//! `CAP_BPF` and `CAP_NET_ADMIN`; the counters of a connection would have to be read out of maps; each kernel's way with half-closed
//! and reset connections, and with bytes that are queued when a socket enters the map, would have to be shown to be exact. It is
//! also no sure gain: the copies that it saves are the same ones, and it moves each segment by itself where a pipe moves many.

use std::io;
use std::task::{Context, Poll, ready};

use ambit_net::splice::{Pipe, refused};
use bytes::Bytes;

use crate::bypass::{Bypass, Drained, Filled};
use crate::growth::LONGEST_PIECE;
use crate::pipes;
use crate::tcp::{TcpSink, TcpSource, would_block};

/// A read that counts as large: half of the largest buffer, which is what a read brings in one packet.
const LARGE: usize = LONGEST_PIECE / 2;

/// Bytes between two rests below which a direction is not bulk any more: what a rest costs more with a pipe, one call that finds
/// nothing, is what copying them costs.
const LEAST: usize = 16 * 1024;

/// When a direction is spliced, and with which pipes.
#[derive(Debug)]
pub(crate) struct Policy {
    /// Large reads in a row before the first pipe is borrowed.
    pub(crate) after: u32,
    /// Makes a pipe.
    pub(crate) make: fn() -> ambit_net::Result<Pipe>,
}

impl Policy {
    /// Never.
    pub(crate) const NEVER: Self = Self {
        after: u32::MAX,
        make: make_pipe,
    };
    /// After four large reads, a quarter of a MiB: a page or an answer of an interface is done by then.
    pub(crate) const BULK: Self = Self {
        after: 4,
        make: make_pipe,
    };
}

fn make_pipe() -> ambit_net::Result<Pipe> {
    Pipe::new(pipes::ROOM)
}

/// One direction's bypass.
#[derive(Debug)]
pub(crate) struct Splice {
    policy: &'static Policy,
    pipe: Option<Pipe>,
    /// Large reads in a row.
    run: u32,
    /// Bytes spliced since the last rest.
    burst: usize,
    /// The last drain left bytes in the pipe: the socket was full, or failed without telling.
    cut_short: bool,
}

impl Splice {
    pub(crate) fn new(policy: &'static Policy) -> Self {
        Self {
            policy,
            pipe: None,
            run: 0,
            burst: 0,
            cut_short: false,
        }
    }

    fn give_back(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            pipes::give_back(pipe);
        }
    }

    /// Nothing more to move at the moment.
    fn rest(&mut self) {
        self.give_back();
        if self.burst > 0 && self.burst < LEAST {
            self.run = 0;
        }
        self.burst = 0;
    }

    /// Copies from now on.
    fn give_up(&mut self) {
        self.give_back();
        self.policy = &Policy::NEVER;
    }
}

impl Bypass<TcpSource, TcpSink> for Splice {
    fn holds(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
    }

    fn was_read(&mut self, bytes: usize) {
        self.run = if bytes >= LARGE {
            self.run.saturating_add(1)
        } else {
            0
        };
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpSource,
    ) -> Poll<io::Result<Filled>> {
        if self.run < self.policy.after {
            return Poll::Ready(Ok(Filled::Declined));
        }
        loop {
            if source.poll_ready(cx)?.is_pending() {
                self.rest();
                return Poll::Pending;
            }
            if self.pipe.is_none() {
                self.pipe = pipes::lend(self.policy.make);
            }
            let Some(pipe) = &mut self.pipe else {
                self.run = 0;
                return Poll::Ready(Ok(Filled::Declined));
            };
            match source.fill(pipe) {
                Ok(0) => {
                    self.rest();
                    return Poll::Ready(Ok(Filled::End));
                }
                Ok(filled) => {
                    self.burst = self.burst.saturating_add(filled);
                    return Poll::Ready(Ok(Filled::Some));
                }
                Err(error) if would_block(&error) => {}
                Err(error) if refused(&error) => {
                    self.give_up();
                    return Poll::Ready(Ok(Filled::Declined));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut TcpSink,
    ) -> Poll<io::Result<Drained>> {
        let Some(pipe) = &mut self.pipe else {
            return Poll::Ready(Ok(Drained::Sent(0)));
        };
        loop {
            ready!(sink.poll_ready(cx))?;
            match sink.drain(pipe, self.cut_short) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(sent) => {
                    self.cut_short = pipe.held() > 0;
                    return Poll::Ready(Ok(Drained::Sent(sent)));
                }
                // A connection that has no room is alive: no error was hidden.
                Err(error) if would_block(&error) => self.cut_short = false,
                Err(error) if refused(&error) => {
                    let held = Bytes::from(pipe.take()?);
                    self.give_up();
                    return Poll::Ready(Ok(Drained::Returned(held)));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn abandon(&mut self) {
        self.give_back();
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.give_back();
    }
}
