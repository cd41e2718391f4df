//! HTTP/2 as tunnels need it (RFC 9113): streams opened by CONNECT, and nothing else.
//!
//! # Theory of operation
//! One [`Engine`] is one connection, as plain data: it does no I/O, knows no clock and wakes nobody. Whoever drives it gives it what
//! was read ([`Engine::receive`]), fills an [`Out`] with what is to be written ([`Engine::fill`]), and asks whom there is news for
//! ([`Engine::news`]). The halves of a stream ask for what arrived and leave what is to go (`halves.rs`), by the number of its slot.
//!
//! A frame is handled when it is whole. Its data goes to its stream's inbox: a large payload without being copied, a small one as a
//! copy, joined with others if it has to wait. Control frames wait in one buffer and go first; then streams that have something to
//! send take turns, a frame each.
//!
//! # Whose error
//! What is wrong with one stream ends that stream (RST_STREAM), and is counted: who makes us reset streams all the time loses the
//! connection. What spoils the connection's state ends the connection ([`Broken`], GOAWAY). Frames on a stream that is over are
//! read and forgotten, since they may have been on their way; on a stream that never was they end the connection.
//!
//! # Bounds
//! - Streams: as many as the peer may open, and [`MAX_SLOTS`] with those that are over and still held.
//! - Bytes that arrived: a window for each stream, and what the thread has room for.
//! - Bytes to be sent: `send_buffer` for each stream and never more than its peer gave credit for.
//! - Control frames: answers to the peer's frames wait in [`ANSWERS`] bytes, and nothing more is read until they are written.
//!   Credit is a number in each stream until it is written. Everything else is ours to say, once for each stream.
//! - Time: `receive` stops when its budget is used, and each frame costs at least [`FRAME_COST`] of it.

mod blocks;
mod frame;
mod halves;
mod incoming;
mod message;
mod outgoing;
mod pieces;
mod stream;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use std::collections::{BTreeMap, VecDeque};

use ambit_wire::hpack;
use bytes::{Buf, BytesMut};
use slab::Slab;

use crate::settings::{FRAME_COST, Settings};
use blocks::Block;
use frame::{FIRST_FRAME, FIRST_WINDOW, HEAD, Head, MOST, PREFACE};

pub(crate) use frame::Code;
pub(crate) use halves::Taken;
pub(crate) use message::Message;
pub(crate) use outgoing::Out;
pub(crate) use stream::Failure;
use stream::Stream;

/// Streams one connection can have at this end, ended ones whose halves are still held included. Five times the most that a peer
/// may have open at once.
pub(crate) const MAX_SLOTS: usize = 1024;

/// Bytes of answers (to PING, SETTINGS and what is refused) that may wait: a thousand. A peer that does not read them is not read.
pub(crate) const ANSWERS: usize = 16 * 1024;

/// Bytes of all control frames that may wait: far more than all streams' requests and answers. Who opens streams, has them answered
/// and reads nothing is not read either.
pub(crate) const CONTROL: usize = 256 * 1024;

/// Our numbers, which the peer is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    window: u32,
    connection_window: u32,
    /// That the peer may open.
    streams: u32,
    frame: usize,
    list: u32,
    /// Longest payload that we send.
    piece: usize,
    /// Most that waits to be sent on one stream.
    buffer: usize,
}

impl Limits {
    /// For `streams` at once, whoever opens them.
    pub(crate) fn new(settings: &Settings, streams: u32) -> Self {
        let frame = settings.max_frame.clamp(FIRST_FRAME, frame::LARGEST_FRAME);
        Self {
            window: settings.stream_window.min(MOST),
            connection_window: settings.connection_window(streams).max(FIRST_WINDOW),
            streams,
            frame: usize::try_from(frame).unwrap_or(usize::MAX),
            list: settings.max_header_list,
            piece: settings.send_piece.max(1),
            buffer: settings.send_buffer.max(1),
        }
    }
}

/// What the peer allows.
#[derive(Debug)]
struct Theirs {
    window: u32,
    frame: usize,
    /// Streams that we may open.
    streams: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// How far the connection has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// So many bytes of the client's first words are here.
    Preface(usize),
    /// The first frame must be SETTINGS.
    Settings,
    Whole,
}

/// The peer broke the protocol, or used up an allowance: the connection is to end with this code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {what}")]
pub(crate) struct Broken {
    pub(crate) code: Code,
    what: &'static str,
}

fn protocol(what: &'static str) -> Broken {
    let code = Code::PROTOCOL_ERROR;
    Broken { code, what }
}

fn size(what: &'static str) -> Broken {
    let code = Code::FRAME_SIZE_ERROR;
    Broken { code, what }
}

fn excessive(what: &'static str) -> Broken {
    let code = Code::ENHANCE_YOUR_CALM;
    Broken { code, what }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Engine {
    role: Role,
    limits: Limits,
    theirs: Theirs,
    begun: Begun,
    /// The peer knows our settings.
    acknowledged: bool,

    slots: Slab<Stream>,
    /// Slots of the streams that are not over, by their numbers.
    open: BTreeMap<u32, usize>,
    /// The largest number that the peer opened.
    highest: u32,
    /// The next that we open.
    next: u32,
    /// Numbers of requests that nobody took yet. Some may be over.
    requests: VecDeque<u32>,

    decoder: hpack::Decoder,
    /// A header block of which more is to come.
    block: Option<Block>,
    /// What handling the current frame cost beyond its length.
    cost: usize,

    /// What the peer may still send on all streams.
    window: i64,
    /// What was taken or thrown away, and the peer was not told.
    credit: i64,
    /// Bytes in all inboxes, and the most that there may be before streams end whose readers stand.
    held: usize,
    most_held: usize,

    /// What we may still send on all streams.
    room: i64,
    /// Bytes in all outboxes.
    queued: usize,
    control: Vec<u8>,
    /// Bytes of it that answer the peer's frames.
    answers: usize,
    /// Streams that have something to send, in turn; those of them that wait for the connection's credit.
    ready: VecDeque<usize>,
    starved: Vec<usize>,
    /// Streams whose peer is to get credit.
    credits: Vec<usize>,

    /// Streams that there is news for.
    told: Vec<usize>,
    /// A stream may be opened that could not before.
    opened_up: bool,

    /// Streams that we reset for the peer's errors.
    faults: u32,
    /// Frames without data beyond those with some.
    empty: u32,
    /// Requests that were given up before anybody took them, since those before were taken.
    given_up: u32,

    /// The largest stream that we said we will act on.
    leaving: Option<u32>,
    /// The peer said good-bye.
    left: Option<Code>,
    /// Questions that wait for their answer: whether the peer lives, and whether it heard that we are leaving.
    asked: bool,
    asked_leaving: bool,
    /// Nothing goes out any more.
    mute: bool,
    /// Nothing more goes in or out.
    over: bool,
}

impl Engine {
    /// The end that dialled.
    pub(crate) fn client(limits: Limits) -> Self {
        let mut engine = Self::new(Role::Client, limits);
        engine.control.extend_from_slice(PREFACE);
        engine.introduce();
        engine
    }

    /// The end that accepted.
    pub(crate) fn server(limits: Limits) -> Self {
        let mut engine = Self::new(Role::Server, limits);
        engine.introduce();
        engine
    }

    fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            theirs: Theirs {
                window: FIRST_WINDOW,
                frame: usize::try_from(FIRST_FRAME).unwrap_or(usize::MAX),
                // What the peer allows is not known before its SETTINGS; nobody of ours asks for more.
                streams: limits.streams,
            },
            begun: match role {
                Role::Client => Begun::Settings,
                Role::Server => Begun::Preface(0),
            },
            acknowledged: false,
            slots: Slab::new(),
            open: BTreeMap::new(),
            highest: 0,
            next: 1,
            requests: VecDeque::new(),
            decoder: hpack::Decoder::new(),
            block: None,
            cost: 0,
            window: i64::from(limits.connection_window),
            credit: 0,
            held: 0,
            most_held: usize::MAX,
            room: i64::from(FIRST_WINDOW),
            queued: 0,
            control: Vec::new(),
            answers: 0,
            ready: VecDeque::new(),
            starved: Vec::new(),
            credits: Vec::new(),
            told: Vec::new(),
            opened_up: false,
            faults: 0,
            empty: 0,
            given_up: 0,
            leaving: None,
            left: None,
            asked: false,
            asked_leaving: false,
            mute: false,
            over: false,
            limits,
        }
    }

    /// Handles the whole frames that `input` begins with, until `budget`, in bytes, is used or answers wait to be written.
    ///
    /// # Errors
    /// The connection is to be ended by [`Engine::end`].
    pub(crate) fn receive(
        &mut self,
        input: &mut BytesMut,
        budget: &mut usize,
    ) -> Result<(), Broken> {
        if !self.greeted(input)? {
            return Ok(());
        }
        while *budget > 0 && self.answers < ANSWERS && self.control.len() < CONTROL {
            let Some(head) = Head::read(input) else {
                break;
            };
            if self.mute {
                self.hush();
            }
            if head.length > self.limits.frame {
                return Err(size("longer than we said that a frame may be"));
            }
            if input.len() < HEAD + head.length {
                break;
            }
            self.cost = 0;
            self.frame(head, input)?;
            let cost = FRAME_COST.max(HEAD + head.length) + self.cost;
            *budget = budget.saturating_sub(cost);
        }
        Ok(())
    }

    /// How many bytes behind `input` make its first frame whole, as far as is known.
    pub(crate) fn missing(input: &[u8]) -> usize {
        let whole = Head::read(input).map_or(HEAD, |head| HEAD + head.length);
        whole.saturating_sub(input.len())
    }

    /// Whether the client's first words are here. Takes them.
    fn greeted(&mut self, input: &mut BytesMut) -> Result<bool, Broken> {
        let Begun::Preface(known) = self.begun else {
            return Ok(true);
        };
        let rest = PREFACE.get(known..).unwrap_or_default();
        let length = rest.len().min(input.len());
        if input.get(..length) != rest.get(..length) {
            return Err(protocol("this is no HTTP/2"));
        }
        input.advance(length);
        self.begun = if length == rest.len() {
            Begun::Settings
        } else {
            Begun::Preface(known + length)
        };
        Ok(length == rest.len())
    }

    /// Whether the peer has begun to speak HTTP/2.
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self.begun, Begun::Preface(_))
    }

    /// Bytes that wait for readers, and bytes that wait to be sent.
    pub(crate) fn holds(&self) -> (usize, usize) {
        (self.held, self.queued)
    }

    /// Sets how many bytes may wait for readers before streams end whose readers stand.
    pub(crate) fn hold_at_most(&mut self, most: usize) {
        self.most_held = most;
    }

    /// Streams that are not over.
    pub(crate) fn open_streams(&self) -> usize {
        self.open.len()
    }

    /// The code with which the peer said good-bye.
    pub(crate) fn left(&self) -> Option<Code> {
        self.left
    }

    /// Whether the peer said good-bye, and no stream is left.
    pub(crate) fn is_left(&self) -> bool {
        self.left.is_some() && self.open.is_empty()
    }

    /// Whether we told the peer for good which streams are the last.
    pub(crate) fn has_left(&self) -> bool {
        self.leaving.is_some_and(|last| last != MOST)
    }

    /// The next stream that there is news for: its slot, and whether its reader and its writer are to look.
    pub(crate) fn news(&mut self) -> Option<(usize, bool, bool)> {
        loop {
            let slot = self.told.pop()?;
            let Some(stream) = self.slots.get_mut(slot) else {
                continue;
            };
            let news = (stream.has.news_to_reader, stream.has.news_to_writer);
            (stream.has.news_to_reader, stream.has.news_to_writer) = (false, false);
            return Some((slot, news.0, news.1));
        }
    }

    /// Whether there is news for anybody.
    pub(crate) fn has_news(&self) -> bool {
        !self.told.is_empty() || self.opened_up
    }

    /// Whether, since this was last asked, something changed for who waits to open a stream.
    pub(crate) fn opened_up(&mut self) -> bool {
        std::mem::take(&mut self.opened_up)
    }

    fn tell_reader(&mut self, slot: usize) {
        if let Some(stream) = self.slots.get_mut(slot) {
            if !stream.has.news_to_reader && !stream.has.news_to_writer {
                self.told.push(slot);
            }
            stream.has.news_to_reader = true;
        }
    }

    fn tell_writer(&mut self, slot: usize) {
        if let Some(stream) = self.slots.get_mut(slot) {
            if !stream.has.news_to_reader && !stream.has.news_to_writer {
                self.told.push(slot);
            }
            stream.has.news_to_writer = true;
            stream.has.waiting_writer = false;
        }
    }
}

#[cfg(test)]
mod tests;
