//! What goes to the peer, and in which order.

use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::frame::{
    Code, DATA, ENABLE_PUSH, END_STREAM, FIRST_WINDOW, GOAWAY, HEAD, Head, INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE, MOST, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, push,
};
use super::stream::{Failure, Receiving, Sending, Stream};
use super::{ANSWERS, CONTROL, Engine, Role};

/// What our questions say: whether the peer lives, and whether it heard that we are leaving.
pub(super) const ALIVE: &[u8] = b"alive?\0\0";
pub(super) const LEAVING: &[u8] = b"leaving\0";

/// Room for control frames that an idle connection keeps.
const SPARE: usize = 256;

/// Bytes on their way to the transport: control frames, and behind them one frame of data.
#[derive(Debug)]
pub(crate) struct Out {
    control: Vec<u8>,
    /// Of it, what is written.
    written: usize,
    /// Of it, what answers the peer.
    answers: usize,
    head: [u8; HEAD],
    /// Of the head, what is written.
    begun: usize,
    payload: Bytes,
}

impl Default for Out {
    fn default() -> Self {
        Self {
            control: Vec::new(),
            written: 0,
            answers: 0,
            head: [0; HEAD],
            begun: HEAD,
            payload: Bytes::new(),
        }
    }
}

impl Out {
    /// What is to be written, in this order.
    pub(crate) fn slices(&self) -> [IoSlice<'_>; 3] {
        let control = self.control.get(self.written..).unwrap_or_default();
        let head = self.head.get(self.begun..).unwrap_or_default();
        [control, head, &self.payload].map(IoSlice::new)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slices().iter().all(|slice| slice.is_empty())
    }

    /// So many bytes of [`Out::slices`] were written.
    pub(crate) fn advance(&mut self, count: usize) {
        let control = count.min(self.control.len() - self.written);
        self.written += control;
        let head = (count - control).min(HEAD - self.begun);
        self.begun += head;
        let payload = (count - control - head).min(self.payload.len());
        self.payload.advance(payload);
        if self.payload.is_empty() {
            self.payload = Bytes::new(); // lets go of the buffer
        }
        if self.written == self.control.len() {
            self.answers = 0;
        }
    }

    fn has_frame(&self) -> bool {
        self.begun < HEAD || !self.payload.is_empty()
    }

    fn has_control(&self) -> bool {
        self.written < self.control.len()
    }
}

impl Engine {
    /// Our settings, and the window of the connection.
    pub(super) fn introduce(&mut self) {
        let limits = self.limits;
        let frame = u32::try_from(limits.frame).unwrap_or(MOST);
        let first = match self.role {
            Role::Client => (ENABLE_PUSH, 0),
            Role::Server => (MAX_CONCURRENT_STREAMS, limits.streams),
        };
        let settings = [
            first,
            (INITIAL_WINDOW_SIZE, limits.window),
            (MAX_FRAME_SIZE, frame),
            (MAX_HEADER_LIST_SIZE, limits.list),
        ];
        let mut payload = Vec::with_capacity(24);
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        push(&mut self.control, SETTINGS, 0, 0, &payload);
        let more = limits.connection_window - FIRST_WINDOW;
        if more > 0 {
            push(&mut self.control, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
    }

    pub(super) fn push_answer(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        let before = self.control.len();
        push(&mut self.control, kind, flags, 0, payload);
        self.answers += self.control.len() - before;
    }

    pub(super) fn push_reset(&mut self, id: u32, code: Code) {
        push(&mut self.control, RST_STREAM, 0, id, &code.0.to_be_bytes());
    }

    fn push_good_bye(&mut self, last: u32, code: Code) {
        let payload = [last.to_be_bytes(), code.0.to_be_bytes()].concat();
        push(&mut self.control, GOAWAY, 0, 0, &payload);
    }

    /// Asks the peer for a sign of life, unless it was asked and did not answer yet.
    pub(crate) fn ask(&mut self) {
        if !std::mem::replace(&mut self.asked, true) {
            push(&mut self.control, PING, 0, 0, ALIVE);
        }
    }

    /// Tells the peer to open no more streams. Those that are on their way are still served (section 6.8).
    pub(crate) fn leave(&mut self) {
        if self.leaving.is_none() && !self.over {
            self.leaving = Some(MOST);
            self.asked_leaving = true;
            self.push_good_bye(MOST, Code::NO_ERROR);
            push(&mut self.control, PING, 0, 0, LEAVING);
        }
    }

    pub(super) fn leave_now(&mut self) {
        self.leaving = Some(self.highest);
        self.push_good_bye(self.highest, Code::NO_ERROR);
    }

    /// Nothing that is said from now on arrives: nothing is kept to be said, and no stream is opened. What the peer sent before is
    /// still read.
    pub(crate) fn mute(&mut self) {
        self.mute = true;
        self.opened_up = true;
        self.hush();
    }

    /// Forgets control frames that nobody will hear. Data stays with its streams, whose writers wait.
    pub(super) fn hush(&mut self) {
        self.control = Vec::new();
        self.answers = 0;
    }

    /// Ends the connection: nothing but a last word goes out. Answers how many streams that cuts.
    pub(crate) fn end(&mut self, code: Option<Code>) -> usize {
        if self.over {
            return 0;
        }
        if let Some(code) = code {
            self.push_good_bye(self.highest, code);
        }
        self.over = true;
        self.opened_up = true;
        let open: Vec<usize> = self.open.values().copied().collect();
        let mut cut = 0;
        for slot in open {
            if let Some(stream) = self.slots.get(slot) {
                cut += usize::from(stream.receiving != Receiving::Ended && stream.has.reader);
            }
            self.fail(slot, Failure::Gone);
        }
        cut
    }

    /// Whether the connection has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Ends a stream in both directions. What arrived may still be read, unless what arrived is what it ended for.
    pub(super) fn fail(&mut self, slot: usize, failure: Failure) {
        if let Some(stream) = self.slots.get_mut(slot) {
            stream.failure.get_or_insert(failure);
            self.queued -= stream.outbox.clear();
            if stream.is_untaken() {
                stream.message = None; // and it never will be
            }
            self.tell_reader(slot);
            self.tell_writer(slot);
            self.settle(slot);
        }
    }

    /// After a change: a stream that is over counts no more, and one that nobody holds is brought to its end and forgotten.
    pub(super) fn settle(&mut self, slot: usize) {
        let Some(stream) = self.slots.get_mut(slot) else {
            return;
        };
        if !stream.is_held() && !stream.is_over() {
            let unsaid = !stream.outbox.is_empty() || stream.sending == Sending::Ending;
            if unsaid {
                return; // goes out first
            }
            // An answer that was given whole needs nothing more of the request (section 8.1).
            let code = match (self.role, stream.sending) {
                (Role::Server, Sending::Ended) => Code::NO_ERROR,
                _ => Code::CANCEL,
            };
            let id = stream.id;
            stream.failure = Some(Failure::ByUs(code));
            if !self.over {
                self.push_reset(id, code);
            }
        }
        let Some(stream) = self.slots.get_mut(slot) else {
            return;
        };
        if stream.is_over() && std::mem::take(&mut stream.has.counted) {
            self.open.remove(&stream.id);
            self.opened_up = true;
        }
        if stream.is_over() && !stream.is_held() {
            let mut stream = self.slots.remove(slot);
            self.unlist(slot, &stream);
            let unread = stream.inbox.clear();
            self.held -= unread;
            self.queued -= stream.outbox.clear();
            self.credit += i64::try_from(unread).unwrap_or(0) + i64::from(stream.lent);
        }
    }

    /// Takes a stream that is forgotten out of the lists it is in: they may not be emptied for long, and slots are used again.
    fn unlist(&mut self, slot: usize, stream: &Stream) {
        let others = |other: &usize| *other != slot;
        if stream.has.ready {
            self.ready.retain(others);
        }
        if stream.has.starved {
            self.starved.retain(others);
        }
        if stream.has.credited {
            self.credits.retain(others);
        }
        if stream.has.news_to_reader || stream.has.news_to_writer {
            self.told.retain(others);
        }
    }

    /// Notes that a stream's peer is to get credit, if it is worth a frame: a quarter of the window. What is not given back is then
    /// less than that, so who has read everything has at least three quarters.
    pub(super) fn credit_stream(&mut self, slot: usize) {
        let worth = (self.limits.window / 4).max(1);
        if let Some(stream) = self.slots.get_mut(slot)
            && stream.credit >= worth
            && stream.receiving != Receiving::Ended
            && !stream.is_over()
            && !std::mem::replace(&mut stream.has.credited, true)
        {
            self.credits.push(slot);
        }
    }

    /// Whether the connection's credit is worth a frame: half of what the peer has left, so that the less it has the sooner it gets
    /// more, and no stream waits for another.
    fn is_credit_due(&self) -> bool {
        self.credit > 0 && self.credit.saturating_mul(2) >= self.window
    }

    fn write_credit(&mut self) {
        if self.is_credit_due() {
            let more = u32::try_from(self.credit).unwrap_or(MOST).min(MOST);
            self.credit -= i64::from(more);
            self.window += i64::from(more);
            push(&mut self.control, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
        while let Some(slot) = self.credits.pop() {
            let Some(stream) = self.slots.get_mut(slot) else {
                continue;
            };
            let wanted = std::mem::take(&mut stream.has.credited);
            if wanted && stream.receiving != Receiving::Ended && !stream.is_over() {
                let more = std::mem::take(&mut stream.credit);
                stream.window += i64::from(more);
                let (id, more) = (stream.id, more.to_be_bytes());
                push(&mut self.control, WINDOW_UPDATE, 0, id, &more);
            }
        }
    }

    /// A stream may have become able to send: it gets its turn, and its writer is told.
    pub(super) fn may_go(&mut self, slot: usize) {
        let Some(stream) = self.slots.get_mut(slot) else {
            return;
        };
        let has = !stream.outbox.is_empty() || stream.sending == Sending::Ending;
        if has
            && !stream.is_over()
            && !stream.has.starved
            && !std::mem::replace(&mut stream.has.ready, true)
        {
            self.ready.push_back(slot);
        }
        self.offer_room(slot);
    }

    /// Tells a writer that waits for room when there is a good part of it.
    fn offer_room(&mut self, slot: usize) {
        if let Some(stream) = self.slots.get(slot)
            && stream.has.waiting_writer
            && stream.outbox.len() <= self.limits.buffer / 2
            && stream.writable(self.limits.buffer) > 0
        {
            self.tell_writer(slot);
        }
    }

    /// Whether there is anything to write.
    pub(crate) fn has_output(&self) -> bool {
        if self.mute {
            return false;
        }
        !(self.control.is_empty() && self.ready.is_empty() && self.credits.is_empty())
            || self.is_credit_due()
    }

    /// Adds to `out` what may go next. False if it is empty after that.
    pub(crate) fn fill(&mut self, out: &mut Out) -> bool {
        if self.mute {
            self.hush();
            *out = Out::default();
            return false;
        }
        if !out.has_frame() {
            if !out.has_control() {
                self.fill_control(out);
            }
            // Control frames that came meanwhile may be what this data belongs to, such as its stream's answer.
            if self.control.is_empty()
                && let Some((head, payload)) = self.next_data()
            {
                (out.head, out.begun, out.payload) = (head, 0, payload);
            }
        }
        !out.is_empty()
    }

    fn fill_control(&mut self, out: &mut Out) {
        if !self.over {
            self.write_credit();
        }
        out.control.clear();
        if out.control.capacity() > SPARE {
            out.control = Vec::new();
        }
        out.written = 0;
        std::mem::swap(&mut self.control, &mut out.control);
        out.answers = std::mem::take(&mut self.answers);
    }

    /// Whether so much waits to be said that nothing should be read.
    pub(crate) fn is_full(&self, out: &Out) -> bool {
        let control = self.control.len() + out.control.len() - out.written;
        self.answers + out.answers >= ANSWERS || control >= CONTROL
    }

    /// The next frame of data, of the streams in their turn.
    fn next_data(&mut self) -> Option<([u8; HEAD], Bytes)> {
        loop {
            let slot = self.ready.pop_front()?;
            let Some(stream) = self.slots.get_mut(slot) else {
                continue;
            };
            if !std::mem::take(&mut stream.has.ready) || stream.is_over() {
                continue;
            }
            let most = self.limits.piece.min(self.theirs.frame);
            let room = usize::try_from(stream.room.min(self.room)).unwrap_or(0);
            let payload = if stream.outbox.is_empty() {
                Bytes::new()
            } else if room > 0 {
                stream.outbox.pop(most.min(room)).unwrap_or_default()
            } else {
                if stream.room > 0 {
                    stream.has.starved = true;
                    self.starved.push(slot);
                }
                continue; // until there is credit
            };
            let ends = stream.outbox.is_empty() && stream.sending == Sending::Ending;
            if payload.is_empty() && !ends {
                self.settle(slot);
                continue;
            }
            let sent = i64::try_from(payload.len()).unwrap_or(0);
            stream.room -= sent;
            if ends {
                stream.sending = Sending::Ended;
            }
            let head = Head {
                length: payload.len(),
                kind: DATA,
                flags: if ends { END_STREAM } else { 0 },
                stream: stream.id,
            };
            self.room -= sent;
            self.queued -= payload.len();
            self.may_go(slot);
            self.settle(slot);
            return Some((head.bytes(), payload));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{HEAD, Out};

    #[test]
    fn is_written_in_order_however_much_at_a_time() {
        for step in [1, 2, 7, 1000] {
            let mut out = Out {
                control: b"control".to_vec(),
                written: 0,
                answers: 7,
                head: *b"head of 9",
                begun: 0,
                payload: Bytes::from_static(b"payload"),
            };
            let mut written = Vec::new();
            while !out.is_empty() {
                let all: Vec<u8> = out.slices().iter().flat_map(|s| s.to_vec()).collect();
                let part = &all[..step.min(all.len())];
                written.extend_from_slice(part);
                out.advance(part.len());
            }
            assert_eq!(written, b"controlhead of 9payload");
            assert_eq!((out.begun, out.answers), (HEAD, 0));
        }
    }
}
