//! What each frame of the peer does.

use bytes::{Buf, BytesMut};

use super::frame::{
    ACK, CONTINUATION, Code, DATA, ENABLE_PUSH, END_STREAM, FIRST_FRAME, FIRST_WINDOW, GOAWAY,
    HEAD, HEADERS, Head, INITIAL_WINDOW_SIZE, LARGEST_FRAME, MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE, MOST, PADDED, PING, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE,
};
use super::outgoing::{ALIVE, LEAVING};
use super::stream::{Failure, Receiving};
use super::{Begun, Broken, Engine, Role, excessive, protocol, size};
use crate::settings::{MAX_EMPTY, MAX_ERROR_RESETS, MAX_RESET_BEFORE_ACCEPT, STANDING};

impl Engine {
    /// Takes a whole frame from `input`.
    pub(super) fn frame(&mut self, head: Head, input: &mut BytesMut) -> Result<(), Broken> {
        let first = self.begun != Begun::Whole;
        if first && (head.kind != SETTINGS || head.has(ACK)) {
            return Err(protocol("something before the settings"));
        }
        if !self.may_come(head.kind) {
            return Err(protocol("a frame in a header block, or the rest of none"));
        }
        if head.kind == DATA {
            input.advance(HEAD);
            return self.data(head, input);
        }
        let payload = input.get(HEAD..HEAD + head.length).unwrap_or_default();
        match head.kind {
            HEADERS => self.headers(head, payload)?,
            CONTINUATION => self.continuation(head, payload)?,
            RST_STREAM => self.reset_by_peer(head, payload)?,
            SETTINGS => self.settings(head, payload)?,
            PING => self.ping(head, payload)?,
            GOAWAY => self.good_bye(head, payload)?,
            WINDOW_UPDATE => self.window_update(head, payload)?,
            PUSH_PROMISE => return Err(protocol("a push, which nobody asked for")),
            PRIORITY if head.stream == 0 => return Err(protocol("a priority of no stream")),
            PRIORITY if head.length != 5 => return Err(size("a priority")),
            // A priority, or what nobody knows: section 5.5 has us forget it.
            _ => {}
        }
        input.advance(HEAD + head.length);
        Ok(())
    }

    /// The slot of a stream; `None` if it is over.
    fn slot(&self, id: u32) -> Result<Option<usize>, Broken> {
        if let Some(slot) = self.open.get(&id) {
            return Ok(Some(*slot));
        }
        let was = match self.role {
            Role::Server => id <= self.highest,
            Role::Client => id < self.next,
        };
        if was && id % 2 == 1 {
            Ok(None)
        } else {
            Err(protocol("a frame on a stream that never was"))
        }
    }

    /// `input` begins with the payload.
    fn data(&mut self, head: Head, input: &mut BytesMut) -> Result<(), Broken> {
        let all = i64::try_from(head.length).unwrap_or(i64::MAX);
        if all > self.window {
            return Err(Broken {
                code: Code::FLOW_CONTROL_ERROR,
                what: "more data than the connection's window",
            });
        }
        let mut length = head.length;
        let mut padding = 0;
        if head.has(PADDED) {
            padding = input.first().copied().map_or(0, usize::from);
            length = length
                .checked_sub(1)
                .ok_or(size("data without its padding"))?;
            input.advance(1);
            length = length
                .checked_sub(padding)
                .ok_or(protocol("more padding than data"))?;
        }
        self.count_empty(length, head.has(END_STREAM))?;
        let slot = self.slot(head.stream)?;
        self.window -= all;
        // What nobody will read, and padding, is given back at once.
        let mut unread = head.length;
        if let Some(slot) = slot
            && self.may_have(slot, all)?
        {
            unread -= self.deliver(slot, head.length, length, input);
        }
        self.credit += i64::try_from(unread).unwrap_or(0);
        // What was delivered is gone from `input` already.
        let delivered = head.length - unread;
        let rest = length - delivered.min(length) + padding;
        input.advance(rest.min(input.len()));
        if let Some(slot) = slot
            && head.has(END_STREAM)
        {
            self.tell_reader(slot);
            self.ended(slot);
        }
        Ok(())
    }

    /// Who sends frames that bring nothing and nothing else is after our time.
    fn count_empty(&mut self, length: usize, ends: bool) -> Result<(), Broken> {
        if length > 0 {
            self.empty = self.empty.saturating_sub(1);
        } else if !ends {
            self.empty += 1;
            if self.empty > MAX_EMPTY {
                return Err(excessive("frames without data"));
            }
        }
        Ok(())
    }

    /// Whether data may come on this stream now; if not, it ends.
    fn may_have(&mut self, slot: usize, all: i64) -> Result<bool, Broken> {
        let Some(stream) = self.slots.get(slot) else {
            return Ok(false);
        };
        let code = match stream.receiving {
            Receiving::Answer => Code::PROTOCOL_ERROR,
            Receiving::Ended => Code::STREAM_CLOSED,
            Receiving::Open if all > stream.window => Code::FLOW_CONTROL_ERROR,
            Receiving::Open => return Ok(true),
        };
        let id = stream.id;
        self.fault(id, code)?;
        Ok(false)
    }

    /// Gives data to a stream: `length` bytes of `input`, of a frame of `all`. Answers how many its reader will get.
    fn deliver(&mut self, slot: usize, all: usize, length: usize, input: &mut BytesMut) -> usize {
        let Some(stream) = self.slots.get_mut(slot) else {
            return 0;
        };
        stream.window -= i64::try_from(all).unwrap_or(i64::MAX);
        let overhead = u32::try_from(all - length).unwrap_or(u32::MAX);
        stream.credit = stream.credit.saturating_add(overhead);
        // A reader that is gone takes nothing and gives no credit; one of a request that nobody took yet will come.
        let read = stream.has.reader || stream.is_untaken();
        let standing = stream.inbox.len() + length > STANDING;
        if overhead > 0 {
            self.credit_stream(slot);
        }
        if length == 0 || !read {
            return 0;
        }
        if standing && self.held + length > self.most_held {
            self.overflow(slot);
            return 0;
        }
        if let Some(stream) = self.slots.get_mut(slot) {
            stream.inbox.take_from(input, length);
        }
        self.held += length;
        self.tell_reader(slot);
        length
    }

    /// Ends a stream whose reader stands, for want of room.
    fn overflow(&mut self, slot: usize) {
        if let Some(stream) = self.slots.get_mut(slot) {
            let gone = stream.inbox.clear();
            let id = stream.id;
            self.held -= gone;
            self.credit += i64::try_from(gone).unwrap_or(0);
            self.push_reset(id, Code::CANCEL);
            self.fail(slot, Failure::NoRoom);
        }
    }

    /// The peer ended its direction.
    pub(super) fn ended(&mut self, slot: usize) {
        if let Some(stream) = self.slots.get_mut(slot)
            && stream.failure.is_none()
        {
            stream.receiving = Receiving::Ended;
            self.settle(slot);
        }
    }

    fn reset_by_peer(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        let code = word(payload).ok_or(size("a reset"))?;
        let Some(slot) = self.slot(head.stream)? else {
            return Ok(());
        };
        self.given_up(slot)?;
        self.fail(slot, Failure::ByPeer(Code(code)));
        Ok(())
    }

    /// A stream is about to end. If it is a request that nobody took, that is counted (CVE-2023-44487).
    fn given_up(&mut self, slot: usize) -> Result<(), Broken> {
        if self
            .slots
            .get(slot)
            .is_some_and(|stream| stream.is_untaken())
        {
            self.given_up += 1;
            if self.given_up > MAX_RESET_BEFORE_ACCEPT {
                return Err(excessive("requests that are given up at once"));
            }
        }
        Ok(())
    }

    /// Ends a stream for an error of the peer's, whether there is any state of it or not. That is counted (CVE-2025-8671).
    pub(super) fn fault(&mut self, id: u32, code: Code) -> Result<(), Broken> {
        self.faults += 1;
        if self.faults > MAX_ERROR_RESETS {
            return Err(excessive("streams that have to be reset"));
        }
        let before = self.control.len();
        self.push_reset(id, code);
        self.answers += self.control.len() - before;
        if let Some(slot) = self.open.get(&id).copied() {
            self.given_up(slot)?;
            self.fail(slot, Failure::ByUs(code));
        }
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        if head.stream != 0 {
            return Err(protocol("settings of a stream"));
        }
        if head.has(ACK) {
            if !payload.is_empty() {
                return Err(size("an acknowledgement"));
            }
            self.acknowledge();
            return Ok(());
        }
        let (settings, []) = payload.as_chunks::<6>() else {
            return Err(size("settings"));
        };
        let mut window = self.theirs.window;
        let mut streams = None;
        for [a, b, value @ ..] in settings {
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([*a, *b]) {
                ENABLE_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                    return Err(protocol("a setting for pushes that cannot be"));
                }
                MAX_CONCURRENT_STREAMS => streams = Some(value),
                INITIAL_WINDOW_SIZE if value > MOST => {
                    return Err(Broken {
                        code: Code::FLOW_CONTROL_ERROR,
                        what: "a window larger than any",
                    });
                }
                INITIAL_WINDOW_SIZE => window = value,
                MAX_FRAME_SIZE if !(FIRST_FRAME..=LARGEST_FRAME).contains(&value) => {
                    return Err(protocol("a size of frames that cannot be"));
                }
                MAX_FRAME_SIZE => {
                    self.theirs.frame = usize::try_from(value).unwrap_or(usize::MAX);
                }
                _ => {}
            }
        }
        // Who says nothing at first allows any number.
        let first = self.begun != Begun::Whole;
        self.begun = Begun::Whole;
        if let Some(streams) = streams.or(first.then_some(u32::MAX)) {
            self.theirs.streams = streams;
            self.opened_up = true;
        }
        self.push_answer(SETTINGS, ACK, &[]);
        self.resize(window)
    }

    /// The peer changed the window of all streams.
    fn resize(&mut self, window: u32) -> Result<(), Broken> {
        let more = i64::from(window) - i64::from(self.theirs.window);
        if more == 0 {
            return Ok(());
        }
        self.theirs.window = window;
        // Each open stream costs about as much as so many bytes that are copied.
        self.cost += 16 * self.open.len();
        let slots: Vec<usize> = self.open.values().copied().collect();
        for slot in slots {
            let Some(stream) = self.slots.get_mut(slot) else {
                continue;
            };
            stream.room += more;
            if stream.room > i64::from(MOST) {
                return Err(Broken {
                    code: Code::FLOW_CONTROL_ERROR,
                    what: "a window larger than any",
                });
            }
            self.may_go(slot);
        }
        Ok(())
    }

    /// The peer knows our settings: where our window is smaller than the protocol's, streams from before have the smaller one now.
    fn acknowledge(&mut self) {
        let less = i64::from(FIRST_WINDOW.saturating_sub(self.limits.window));
        if !std::mem::replace(&mut self.acknowledged, true) && less > 0 {
            for (_, stream) in &mut self.slots {
                stream.window -= less;
            }
        }
    }

    fn ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        if head.stream != 0 {
            return Err(protocol("a ping on a stream"));
        }
        if payload.len() != 8 {
            return Err(size("a ping"));
        }
        if !head.has(ACK) {
            self.push_answer(PING, ACK, payload);
        } else if payload == ALIVE {
            self.asked = false;
        } else if payload == LEAVING && std::mem::take(&mut self.asked_leaving) {
            self.leave_now();
        }
        Ok(())
    }

    fn good_bye(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        if head.stream != 0 {
            return Err(protocol("a good-bye on a stream"));
        }
        let Some((&[a, b, c, d, e, f, g, h], _)) = payload.split_first_chunk::<8>() else {
            return Err(size("a good-bye"));
        };
        let last = u32::from_be_bytes([a & 0x7f, b, c, d]);
        self.left = Some(Code(u32::from_be_bytes([e, f, g, h])));
        self.opened_up = true;
        if self.role == Role::Client {
            let from = last.saturating_add(1);
            let later: Vec<usize> = self.open.range(from..).map(|(_, slot)| *slot).collect();
            for slot in later {
                self.fail(slot, Failure::NotAccepted);
            }
        }
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        let more = i64::from(word(payload).ok_or(size("a window update"))? & MOST);
        if head.stream == 0 {
            self.room += more;
            if more == 0 {
                return Err(protocol("credit of nothing"));
            }
            if self.room > i64::from(MOST) {
                return Err(Broken {
                    code: Code::FLOW_CONTROL_ERROR,
                    what: "a window larger than any",
                });
            }
            for slot in std::mem::take(&mut self.starved) {
                if let Some(stream) = self.slots.get_mut(slot) {
                    stream.has.starved = false;
                    self.may_go(slot);
                }
            }
            return Ok(());
        }
        let Some(slot) = self.slot(head.stream)? else {
            return Ok(());
        };
        let Some(stream) = self.slots.get_mut(slot) else {
            return Ok(());
        };
        stream.room += more;
        if more == 0 {
            return self.fault(head.stream, Code::PROTOCOL_ERROR);
        }
        if stream.room > i64::from(MOST) {
            return self.fault(head.stream, Code::FLOW_CONTROL_ERROR);
        }
        self.may_go(slot);
        Ok(())
    }
}

/// A payload that is one number.
fn word(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.try_into().ok()?))
}
