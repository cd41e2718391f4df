//! Frames that carry header blocks: requests, answers, and what comes behind data.

use super::frame::{
    CONTINUATION, Code, END_HEADERS, END_STREAM, HEADERS, Head, PADDED, PRIORITIZED,
};
use super::message::{self, LONGEST, Message};
use super::stream::{Receiving, Sending, Stream};
use super::{Broken, Engine, MAX_SLOTS, Role, excessive, frame, protocol};

/// Frames that a block may go on in: with the smallest that every peer may send, more than the longest block takes.
const MOST_FRAMES: usize = 8;

/// A header block of which more is to come.
#[derive(Debug)]
pub(super) struct Block {
    stream: u32,
    ends: bool,
    bytes: Vec<u8>,
    frames: usize,
}

impl Engine {
    pub(super) fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        if head.stream == 0 {
            return Err(protocol("a header block of no stream"));
        }
        let part = fragment(head, payload)
            .ok_or(protocol("a header block with more padding than it is"))?;
        let ends = head.has(END_STREAM);
        if head.has(END_HEADERS) {
            return self.block(head.stream, ends, part);
        }
        self.block = Some(Block {
            stream: head.stream,
            ends,
            bytes: part.to_vec(),
            frames: 1,
        });
        self.bounded()
    }

    pub(super) fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        let Some(block) = self
            .block
            .as_mut()
            .filter(|block| block.stream == head.stream)
        else {
            return Err(protocol("the rest of a header block that did not begin"));
        };
        block.bytes.extend_from_slice(payload);
        block.frames += 1;
        if head.has(END_HEADERS)
            && let Some(block) = self.block.take()
        {
            return self.block(block.stream, block.ends, &block.bytes);
        }
        self.bounded()
    }

    /// A block that goes on and on ends the connection.
    fn bounded(&self) -> Result<(), Broken> {
        let longest = self.longest_list().saturating_mul(LONGEST);
        match &self.block {
            Some(block) if block.frames > MOST_FRAMES || block.bytes.len() > longest => {
                Err(excessive("a header block without end"))
            }
            _ => Ok(()),
        }
    }

    fn longest_list(&self) -> usize {
        usize::try_from(self.limits.list).unwrap_or(usize::MAX)
    }

    /// Whether a frame of this kind may come now: nothing goes between the frames of a block.
    pub(super) fn may_come(&self, kind: u8) -> bool {
        self.block.is_some() == (kind == CONTINUATION)
    }

    /// A block is whole.
    fn block(&mut self, id: u32, ends: bool, block: &[u8]) -> Result<(), Broken> {
        let most = self.longest_list();
        let read = message::read(&mut self.decoder, block, most).map_err(|_| Broken {
            code: Code::COMPRESSION_ERROR,
            what: "this is no header block",
        })?;
        self.cost += read.size;
        if let Some(slot) = self.open.get(&id).copied() {
            return self.on_stream(slot, ends, read.message);
        }
        match self.role {
            Role::Server if id % 2 == 1 && id > self.highest => {
                self.highest = id;
                self.request(id, ends, read.message)
            }
            // What comes behind the data of a stream that we reset.
            Role::Server if id % 2 == 1 && ends => Ok(()),
            Role::Server => Err(protocol("a request with a number that cannot be")),
            // The answer to a request that we gave up.
            Role::Client if id % 2 == 1 && id < self.next => Ok(()),
            Role::Client => Err(protocol("an answer to no request")),
        }
    }

    /// A request. To be taken by [`Engine::next_request`].
    fn request(&mut self, id: u32, ends: bool, message: Option<Message>) -> Result<(), Broken> {
        if self.leaving.is_some_and(|last| id > last) {
            return Ok(()); // the peer was told that nobody will act on it
        }
        let Some(message) = message.filter(Message::is_request) else {
            return self.fault(id, Code::PROTOCOL_ERROR);
        };
        let open = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        if open >= self.limits.streams || self.slots.len() >= MAX_SLOTS {
            return self.fault(id, Code::REFUSED_STREAM);
        }
        let mut stream = self.new_stream(id);
        stream.sending = Sending::Answer;
        stream.message = Some(Box::new(message));
        if ends {
            stream.receiving = Receiving::Ended;
        }
        let slot = self.slots.insert(stream);
        self.open.insert(id, slot);
        self.requests.push_back(id);
        Ok(())
    }

    /// A block on a stream that is not over.
    fn on_stream(
        &mut self,
        slot: usize,
        ends: bool,
        message: Option<Message>,
    ) -> Result<(), Broken> {
        let Some(stream) = self.slots.get_mut(slot) else {
            return Ok(());
        };
        let id = stream.id;
        let Some(message) = message else {
            return self.fault(id, Code::PROTOCOL_ERROR);
        };
        match stream.receiving {
            Receiving::Answer => {
                let Some(status) = message.answer() else {
                    return self.fault(id, Code::PROTOCOL_ERROR);
                };
                if status.is_informational() && !ends {
                    return Ok(()); // the answer is to come
                }
                stream.message = Some(Box::new(message));
                stream.receiving = Receiving::Open;
            }
            Receiving::Open if !ends || message.is_head() => {
                return self.fault(id, Code::PROTOCOL_ERROR);
            }
            Receiving::Open => {}
            Receiving::Ended => return self.fault(id, Code::STREAM_CLOSED),
        }
        self.tell_reader(slot);
        if ends {
            self.ended(slot);
        }
        Ok(())
    }

    /// The window of a new stream: until the peer knows ours, it may take it for the protocol's.
    fn first_window(&self) -> i64 {
        let least = if self.acknowledged {
            0
        } else {
            frame::FIRST_WINDOW
        };
        i64::from(self.limits.window.max(least))
    }

    pub(super) fn new_stream(&self, id: u32) -> Stream {
        Stream::new(id, self.first_window(), i64::from(self.theirs.window))
    }
}

/// The part of a block that a HEADERS frame has, without padding and priority.
fn fragment(head: Head, mut payload: &[u8]) -> Option<&[u8]> {
    debug_assert_eq!(head.kind, HEADERS);
    let mut padding = 0;
    if head.has(PADDED) {
        let (first, rest) = payload.split_first()?;
        (padding, payload) = (usize::from(*first), rest);
    }
    if head.has(PRIORITIZED) {
        payload = payload.get(5..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
}
