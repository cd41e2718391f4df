//! An engine that is told anything, in pieces of any size, while its streams do what streams do. What must hold whatever it is told
//! is checked all the way: nothing panics, and everything it holds is bounded.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

use super::frame::PREFACE;
use super::{ANSWERS, CONTROL, Engine, Limits, MAX_SLOTS, Out, Role, Taken};
use crate::settings::{Settings, TURN_BYTES};

/// Streams that the engine lets its peer have, or opens: few, so that a short input reaches the bounds.
const STREAMS: u32 = 5;
const WINDOW: u32 = 70_000;

/// Tells both ends. The first byte says how long the pieces are; of what follows, each piece is told, and then its last byte says
/// what the streams do.
pub(crate) fn told(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else {
        return;
    };
    let settings = Settings {
        stream_window: WINDOW,
        send_buffer: 40_000,
        max_header_list: 2000,
        ..Settings::default()
    };
    let limits = Limits::new(&settings, STREAMS);
    let mut client = Told::new(Engine::client(limits));
    client.open();
    client.open();
    client.hear(bytes, usize::from(*step) + 1);
    client.leave();
    let mut server = Told::new(Engine::server(limits));
    server.hear(PREFACE, PREFACE.len());
    server.hear(bytes, usize::from(*step) + 1);
    server.leave();
}

struct Told {
    engine: Engine,
    input: BytesMut,
    out: Out,
    /// Slots of which the reader, the writer, is held.
    readers: Vec<usize>,
    writers: Vec<usize>,
    over: bool,
}

impl Told {
    fn new(engine: Engine) -> Self {
        Self {
            engine,
            input: BytesMut::new(),
            out: Out::default(),
            readers: Vec::new(),
            writers: Vec::new(),
            over: false,
        }
    }

    fn open(&mut self) {
        if self.engine.can_open() && self.engine.takes_streams() {
            let slot = self.engine.open("10.0.0.1:80", &HeaderMap::new());
            self.readers.push(slot);
            self.writers.push(slot);
        }
    }

    fn hear(&mut self, bytes: &[u8], step: usize) {
        for piece in bytes.chunks(step) {
            if self.over {
                return;
            }
            self.input.extend_from_slice(piece);
            let mut budget = TURN_BYTES;
            if let Err(broken) = self.engine.receive(&mut self.input, &mut budget) {
                self.engine.end(Some(broken.code));
                self.over = true;
            }
            self.act(piece.last().copied().unwrap_or_default());
            self.check();
        }
    }

    fn act(&mut self, what: u8) {
        let which = usize::from(what >> 4);
        let reader = self.readers.get(which % self.readers.len().max(1)).copied();
        let writer = self.writers.get(which % self.writers.len().max(1)).copied();
        match what % 16 {
            0..=3 => self.write(usize::from(what) * 10),
            4 => self.engine.hold_at_most(usize::from(what) * 300),
            5 => self.open(),
            6 | 7 => self.take_request(),
            8 => {
                if let Some(slot) = reader
                    && let Taken::Piece(piece) = self.engine.take(slot)
                {
                    assert!(!piece.is_empty());
                }
            }
            9 | 10 => {
                if let Some(slot) = writer
                    && let Ok(room) = self.engine.room(slot)
                {
                    let room = room.min(20_000);
                    self.engine.send(slot, Bytes::from(vec![7; room]));
                    self.engine.await_room(slot);
                }
            }
            11 => {
                if let Some(slot) = writer {
                    // Fails only if the stream did.
                    let _ = self.engine.close(slot);
                }
            }
            12 => {
                if let Some(slot) = writer {
                    self.engine.reset(slot, super::Code::CANCEL);
                }
            }
            13 if reader.is_some() => {
                let slot = self.readers.swap_remove(which % self.readers.len());
                self.engine.drop_reader(slot);
            }
            14 if writer.is_some() => {
                let slot = self.writers.swap_remove(which % self.writers.len());
                self.engine.drop_writer(slot);
            }
            15 => self.engine.leave(),
            _ => {}
        }
        while self.engine.news().is_some() {}
    }

    fn take_request(&mut self) {
        if let Some((slot, _)) = self.engine.next_request() {
            // Fails only if the stream did.
            let _ = self
                .engine
                .answer(slot, StatusCode::OK, &HeaderMap::new(), false);
            self.readers.push(slot);
            self.writers.push(slot);
        }
    }

    fn write(&mut self, mut most: usize) {
        while most > 0 && self.engine.fill(&mut self.out) {
            let length: usize = self.out.slices().iter().map(|slice| slice.len()).sum();
            self.out.advance(length.min(most));
            most -= length.min(most);
        }
    }

    fn check(&self) {
        let engine = &self.engine;
        let (held, queued) = engine.holds();
        let streams = usize::try_from(STREAMS).unwrap_or(0);
        // How many we may open is the peer's to say.
        assert!(engine.role == Role::Client || engine.open_streams() <= streams);
        assert!(engine.slots.len() <= MAX_SLOTS);
        assert_eq!(held, engine.slots.iter().map(|(_, s)| s.inbox.len()).sum());
        assert_eq!(
            queued,
            engine.slots.iter().map(|(_, s)| s.outbox.len()).sum()
        );
        for (slot, stream) in &engine.slots {
            assert!(stream.inbox.len() <= usize::try_from(WINDOW).unwrap_or(0));
            assert!(stream.outbox.len() <= 40_000);
            assert_eq!(
                stream.has.counted,
                engine.open.get(&stream.id) == Some(&slot)
            );
            assert!(stream.is_held() || !stream.is_over(), "it is forgotten");
        }
        for list in [&engine.starved, &engine.credits, &engine.told] {
            assert!(list.len() <= engine.slots.len());
        }
        assert!(engine.ready.len() <= engine.slots.len());
        assert!(engine.answers <= ANSWERS + 1000, "{}", engine.answers);
        assert!(engine.control.len() <= CONTROL + 10_000);
        // What the peer may send, what came and was not taken, and what it will be given back: always the same.
        let lent: i64 = (&engine.slots)
            .into_iter()
            .map(|(_, s)| i64::from(s.lent))
            .sum();
        let waiting = i64::try_from(held).unwrap_or(0);
        assert_eq!(
            engine.window + engine.credit + waiting + lent,
            i64::from(engine.limits.connection_window)
        );
    }

    /// Everybody lets go: nothing is left.
    fn leave(&mut self) {
        self.engine.end(None);
        for slot in std::mem::take(&mut self.readers) {
            self.engine.drop_reader(slot);
        }
        for slot in std::mem::take(&mut self.writers) {
            self.engine.drop_writer(slot);
        }
        assert!(self.engine.slots.is_empty() && self.engine.open.is_empty());
        assert_eq!(self.engine.holds(), (0, 0));
    }
}
