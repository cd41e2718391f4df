//! What the halves of streams ask for, by the number of their slot.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::frame::{Code, MOST, push_block};
use super::message::{self, Message};
use super::stream::{Failure, Receiving, Sending};
use super::{ANSWERS, Engine, MAX_SLOTS, Role};

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Piece(Bytes),
    /// The peer has ended its direction.
    End,
    Failed(Failure),
    /// Nothing yet.
    Nothing,
}

impl Engine {
    /// Whether a stream can be opened now.
    pub(crate) fn can_open(&self) -> bool {
        let open = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        // Requests that wait to be written are as bounded as answers are.
        open < self.theirs.streams
            && self.slots.len() < MAX_SLOTS
            && self.control.len() < 4 * ANSWERS
    }

    /// Whether streams will ever be opened again.
    pub(crate) fn takes_streams(&self) -> bool {
        let ends = self.over || self.mute || self.left.is_some();
        self.role == Role::Client && !ends && self.next < MOST
    }

    /// Streams that the peer lets us have at once.
    pub(crate) fn capacity(&self) -> u32 {
        self.theirs.streams
    }

    /// Opens a stream to `authority`. To be called when [`Engine::can_open`]. Answers its slot, of which both halves are held.
    pub(crate) fn open(&mut self, authority: &str, headers: &HeaderMap) -> usize {
        let id = self.next;
        self.next += 2;
        let mut stream = self.new_stream(id);
        stream.receiving = Receiving::Answer;
        (stream.has.reader, stream.has.writer) = (true, true);
        let slot = self.slots.insert(stream);
        self.open.insert(id, slot);
        let block = message::connect(authority, headers);
        push_block(&mut self.control, id, false, &block, self.theirs.frame);
        slot
    }

    /// The answer to a request of ours, once; `Nothing` until it is there.
    pub(crate) fn take_answer(&mut self, slot: usize) -> Result<Option<Message>, Failure> {
        let Some(stream) = self.slots.get_mut(slot) else {
            return Err(Failure::Gone);
        };
        match (stream.message.take(), stream.failure) {
            (Some(message), _) => Ok(Some(*message)),
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(None),
        }
    }

    /// The next request of the peer's. Both halves of its slot are held then.
    pub(crate) fn next_request(&mut self) -> Option<(usize, Message)> {
        loop {
            let id = self.requests.pop_front()?;
            let slot = self.open.get(&id).copied();
            let stream = slot.and_then(|slot| self.slots.get_mut(slot));
            if let (Some(slot), Some(stream)) = (slot, stream)
                && let Some(message) = stream.message.take()
            {
                (stream.has.reader, stream.has.writer) = (true, true);
                return Some((slot, *message));
            }
            self.given_up = self.given_up.saturating_sub(1);
        }
    }

    /// Whether a request waits to be taken.
    pub(crate) fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Answers a request; `ends` says that nothing follows.
    pub(crate) fn answer(
        &mut self,
        slot: usize,
        status: StatusCode,
        headers: &HeaderMap,
        ends: bool,
    ) -> Result<(), Failure> {
        let stream = self.slots.get_mut(slot).ok_or(Failure::Gone)?;
        if let Some(failure) = stream.failure {
            return Err(failure);
        }
        stream.sending = if ends { Sending::Ended } else { Sending::Open };
        let id = stream.id;
        let block = message::answer(status, headers);
        let before = self.control.len();
        push_block(&mut self.control, id, ends, &block, self.theirs.frame);
        if ends {
            self.answers += self.control.len() - before;
        }
        self.settle(slot);
        Ok(())
    }

    /// Refuses a request that nobody will look at.
    pub(crate) fn refuse(&mut self, slot: usize) {
        self.reset(slot, Code::REFUSED_STREAM);
    }

    /// The next piece that arrived. Asking gives the peer credit for the one before.
    pub(crate) fn take(&mut self, slot: usize) -> Taken {
        let Some(stream) = self.slots.get_mut(slot) else {
            return Taken::Failed(Failure::Gone);
        };
        let lent = std::mem::take(&mut stream.lent);
        let piece = stream.inbox.pop(usize::MAX);
        let taken = match (piece, stream.receiving, stream.failure) {
            (Some(piece), ..) => {
                self.held -= piece.len();
                stream.lent = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                Taken::Piece(piece)
            }
            (None, Receiving::Ended, _) => Taken::End,
            (None, _, Some(failure)) => Taken::Failed(failure),
            (None, _, None) => Taken::Nothing,
        };
        if lent > 0 {
            stream.credit = stream.credit.saturating_add(lent);
            self.credit += i64::from(lent);
            self.credit_stream(slot);
        }
        taken
    }

    /// What may be left to be sent now; 0 when its writer has to wait, and will be told.
    pub(crate) fn room(&mut self, slot: usize) -> Result<usize, Failure> {
        let stream = self.slots.get_mut(slot).ok_or(Failure::Gone)?;
        if let Some(failure) = stream.failure {
            return Err(failure);
        }
        Ok(stream.writable(self.limits.buffer))
    }

    /// Longest piece that is sent as one frame.
    pub(crate) fn longest_piece(&self) -> usize {
        self.limits.piece
    }

    /// Bytes of one stream that wait to be sent.
    pub(crate) fn waiting(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, |stream| stream.outbox.len())
    }

    /// Its writer is to be told when there is room.
    pub(crate) fn await_room(&mut self, slot: usize) {
        if let Some(stream) = self.slots.get_mut(slot) {
            stream.has.waiting_writer = true;
        }
    }

    /// Leaves bytes to be sent, no more than there is room for.
    pub(crate) fn send(&mut self, slot: usize, piece: Bytes) {
        if let Some(stream) = self.slots.get_mut(slot)
            && stream.failure.is_none()
            && stream.sending == Sending::Open
        {
            self.queued += piece.len();
            stream.outbox.push(piece);
            self.may_go(slot);
        }
    }

    /// Ends our direction, behind what waits.
    pub(crate) fn close(&mut self, slot: usize) -> Result<(), Failure> {
        let stream = self.slots.get_mut(slot).ok_or(Failure::Gone)?;
        if let Some(failure) = stream.failure {
            return Err(failure);
        }
        if stream.sending == Sending::Open {
            stream.sending = Sending::Ending;
            self.may_go(slot);
        }
        Ok(())
    }

    /// Ends a stream in both directions at once; what waits is thrown away.
    pub(crate) fn reset(&mut self, slot: usize, code: Code) {
        if let Some(stream) = self.slots.get_mut(slot)
            && !stream.is_over()
        {
            let id = stream.id;
            if !self.over {
                self.push_reset(id, code);
            }
            self.fail(slot, Failure::ByUs(code));
        }
    }

    /// Why a stream failed, if it did, and whether what the peer sent on it is whole all the same.
    pub(crate) fn failure(&self, slot: usize) -> Option<(Failure, bool)> {
        let Some(stream) = self.slots.get(slot) else {
            return Some((Failure::Gone, false));
        };
        let whole = stream.receiving == Receiving::Ended;
        stream.failure.map(|failure| (failure, whole))
    }

    /// Nobody will read the stream any more: what is there, and what comes, is thrown away.
    pub(crate) fn drop_reader(&mut self, slot: usize) {
        if let Some(stream) = self.slots.get_mut(slot) {
            stream.has.reader = false;
            let unread = stream.inbox.clear();
            let lent = std::mem::take(&mut stream.lent);
            self.held -= unread;
            self.credit += i64::try_from(unread).unwrap_or(0) + i64::from(lent);
            self.settle(slot);
        }
    }

    /// Nobody will write to the stream any more.
    pub(crate) fn drop_writer(&mut self, slot: usize) {
        if let Some(stream) = self.slots.get_mut(slot) {
            stream.has.writer = false;
            self.settle(slot);
        }
    }
}
