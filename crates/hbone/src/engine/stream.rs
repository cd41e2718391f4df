//! What the engine knows of one stream.

use super::frame::Code;
use super::message::Message;
use super::pieces::Pieces;

/// The peer's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receiving {
    /// The answer to our request is not here.
    Answer,
    Open,
    /// The peer ended it: what it sent is whole.
    Ended,
}

/// Our direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sending {
    /// The answer to the peer's request was not given.
    Answer,
    Open,
    /// The end goes out behind what is waiting.
    Ending,
    Ended,
}

/// Why a stream is over that did not end in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The peer reset it.
    ByPeer(Code),
    /// We did.
    ByUs(Code),
    /// The peer says that it did not act on it.
    NotAccepted,
    /// Its reader stands, and there was no room for more.
    NoRoom,
    /// The connection is gone.
    Gone,
}

/// One stream: it has a slot from its request until it is over and both of its halves were let go.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(super) id: u32,
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    pub(super) failure: Option<Failure>,
    /// What the peer may still send.
    pub(super) window: i64,
    /// What the reader is done with, and the peer was not told.
    pub(super) credit: u32,
    /// What the reader took last.
    pub(super) lent: u32,
    /// Arrived and not taken.
    pub(super) inbox: Pieces,
    /// What we may still send: below zero when the peer took back what it allowed.
    pub(super) room: i64,
    /// To be sent.
    pub(super) outbox: Pieces,
    /// A request that nobody took yet, or an answer.
    pub(super) message: Option<Box<Message>>,
    pub(super) has: Has,
}

/// Small facts.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Has {
    /// Halves that somebody holds.
    pub(super) reader: bool,
    pub(super) writer: bool,
    /// It counts as open, for the limits of both sides.
    pub(super) counted: bool,
    /// The writer waits for room.
    pub(super) waiting_writer: bool,
    /// It is in the list of those that have something to send.
    pub(super) ready: bool,
    /// It has something to send and the connection has no credit for it.
    pub(super) starved: bool,
    /// It is in the list of those whose peer is to get credit.
    pub(super) credited: bool,
    /// There is news that its reader, its writer, was not told.
    pub(super) news_to_reader: bool,
    pub(super) news_to_writer: bool,
}

impl Stream {
    pub(super) fn new(id: u32, window: i64, room: i64) -> Self {
        Self {
            id,
            receiving: Receiving::Open,
            sending: Sending::Open,
            failure: None,
            window,
            credit: 0,
            lent: 0,
            inbox: Pieces::default(),
            room,
            outbox: Pieces::default(),
            message: None,
            has: Has {
                counted: true,
                ..Has::default()
            },
        }
    }

    /// Whether neither side may send more on it.
    pub(super) fn is_over(&self) -> bool {
        let ended = self.receiving == Receiving::Ended && self.sending == Sending::Ended;
        ended || self.failure.is_some()
    }

    /// Whether anybody is there to do something about it: who holds a half, or who will take the request.
    pub(super) fn is_held(&self) -> bool {
        self.has.reader || self.has.writer || self.is_untaken()
    }

    /// Whether it is a request that nobody took.
    pub(super) fn is_untaken(&self) -> bool {
        self.sending == Sending::Answer && self.message.is_some()
    }

    /// What its writer may add to what waits: the peer's credit, and `most` at all.
    pub(super) fn writable(&self, most: usize) -> usize {
        let waiting = self.outbox.len();
        let credit = usize::try_from(self.room).unwrap_or(0);
        credit.min(most).saturating_sub(waiting)
    }
}
