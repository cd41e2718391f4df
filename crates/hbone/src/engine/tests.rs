//! The engine alone: frames in, frames out.

mod bad;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use proptest::collection::vec;
use proptest::prelude::{any, prop_oneof};
use proptest::proptest;
use proptest::strategy::{Just, Strategy};

use super::frame::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEAD, HEADERS, Head, INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MOST, PADDED, PING, PREFACE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, push,
};
use super::{Broken, Code, Engine, Failure, Limits, Out, Taken, fuzzing};
use crate::settings::Settings;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    push(&mut out, kind, flags, stream, payload);
    out
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

fn credit(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn request(stream: u32) -> Vec<u8> {
    let block = super::message::connect("10.0.0.1:80", &HeaderMap::new());
    frame(HEADERS, END_HEADERS, stream, &block)
}

fn accepted(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[0x88])
}

fn reset(stream: u32, code: Code) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.0.to_be_bytes())
}

/// What an engine says: each frame's head and payload.
type Said = Vec<(Head, Vec<u8>)>;

struct End {
    engine: Engine,
    out: Out,
    input: BytesMut,
}

impl End {
    fn server(settings: &Settings) -> Self {
        let mut end = Self::new(Engine::server(Limits::new(settings, settings.max_streams)));
        end.hear(PREFACE).unwrap();
        end.hear(&frame(SETTINGS, 0, 0, &[])).unwrap();
        end.hear(&frame(SETTINGS, ACK, 0, &[])).unwrap();
        end.says();
        end
    }

    fn client(settings: &Settings) -> Self {
        let mut end = Self::new(Engine::client(Limits::new(settings, 100)));
        end.hear(&frame(SETTINGS, 0, 0, &[])).unwrap();
        end.hear(&frame(SETTINGS, ACK, 0, &[])).unwrap();
        let said = end.bytes();
        assert!(said.starts_with(PREFACE));
        end
    }

    fn new(engine: Engine) -> Self {
        Self {
            engine,
            out: Out::default(),
            input: BytesMut::new(),
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.input.extend_from_slice(bytes);
        self.engine
            .receive(&mut self.input, &mut usize::MAX.clone())
    }

    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.engine.fill(&mut self.out) {
            let part: Vec<u8> = self
                .out
                .slices()
                .iter()
                .flat_map(|s| s.iter().copied())
                .collect();
            self.out.advance(part.len());
            bytes.extend(part);
        }
        bytes
    }

    fn says(&mut self) -> Said {
        frames(&self.bytes())
    }

    /// A stream of the peer's, accepted.
    fn accepts(&mut self, id: u32) -> usize {
        self.hear(&request(id)).unwrap();
        let (slot, message) = self.engine.next_request().unwrap();
        assert_eq!(message.method, Some(Method::CONNECT));
        let answered = self
            .engine
            .answer(slot, StatusCode::OK, &HeaderMap::new(), false);
        answered.unwrap();
        self.says();
        slot
    }

    /// A stream of ours, accepted.
    fn opens(&mut self) -> (usize, u32) {
        let slot = self.engine.open("10.0.0.1:80", &HeaderMap::new());
        let id = self.says()[0].0.stream;
        self.hear(&accepted(id)).unwrap();
        assert!(self.engine.take_answer(slot).unwrap().is_some());
        while self.engine.news().is_some() {}
        (slot, id)
    }
}

fn frames(mut bytes: &[u8]) -> Said {
    let mut frames = Vec::new();
    while let Some(head) = Head::read(bytes) {
        let end = HEAD + head.length;
        frames.push((head, bytes[HEAD..end].to_vec()));
        bytes = &bytes[end..];
    }
    assert!(bytes.is_empty());
    frames
}

fn kinds(said: &Said) -> Vec<(u8, u32)> {
    said.iter()
        .map(|(head, _)| (head.kind, head.stream))
        .collect()
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload.try_into().unwrap())
}

fn brief() -> Settings {
    Settings {
        stream_window: 100_000,
        ..Settings::default()
    }
}

#[test]
fn an_end_and_a_reset_behind_it_take_nothing_back() {
    for code in [0, 2, 8] {
        let mut end = End::client(&brief());
        let (slot, id) = end.opens();
        let all = [frame(DATA, END_STREAM, id, b"whole"), reset(id, Code(code))];
        end.hear(&all.concat()).unwrap();
        assert_eq!(
            end.engine.take(slot),
            Taken::Piece(Bytes::from_static(b"whole"))
        );
        assert_eq!(end.engine.take(slot), Taken::End);
        let (failure, whole) = end.engine.failure(slot).unwrap();
        assert_eq!((failure, whole), (Failure::ByPeer(Code(code)), true));
        let (slot, id) = end.opens();
        end.hear(&[frame(DATA, 0, id, b"half"), reset(id, Code(code))].concat())
            .unwrap();
        assert_eq!(
            end.engine.take(slot),
            Taken::Piece(Bytes::from_static(b"half"))
        );
        assert_eq!(
            end.engine.take(slot),
            Taken::Failed(Failure::ByPeer(Code(code)))
        );
    }
}

#[test]
fn credit_is_given_back_in_steps_and_only_for_what_was_taken() {
    let mut end = End::server(&brief());
    let slot = end.accepts(1);
    // Ten pieces of a tenth of the window: they arrive, and nobody takes them.
    for _ in 0..10 {
        end.hear(&frame(DATA, 0, 1, &[7; 10_000])).unwrap();
    }
    assert!(end.says().is_empty());
    let mut given = Vec::new();
    for _ in 0..10 {
        assert!(matches!(end.engine.take(slot), Taken::Piece(piece) if piece.len() == 10_000));
        given.extend(end.says());
    }
    // The third piece that was done with makes a quarter.
    assert_eq!(kinds(&given), [(WINDOW_UPDATE, 1); 3]);
    assert!(given.iter().all(|(_, more)| number(more) == 30_000));
    assert_eq!(end.engine.take(slot), Taken::Nothing);
    end.hear(&frame(DATA, 0, 1, &[7; 60_000])).unwrap();
    end.hear(&frame(DATA, 0, 1, &[7; 30_000])).unwrap();
    assert!(end.engine.failure(slot).is_none(), "so much was allowed");
}

#[test]
fn the_less_of_the_connections_window_is_left_the_sooner_there_is_more() {
    let settings = Settings {
        max_streams: 1,
        ..brief()
    };
    // 200,000 bytes in all. A standing stream holds half of it.
    let mut end = End::server(&settings);
    let standing = end.accepts(1);
    end.hear(&frame(DATA, 0, 1, &[7; 50_000]).repeat(2))
        .unwrap();
    end.hear(&frame(DATA, END_STREAM, 1, &[])).unwrap();
    end.engine.close(standing).unwrap();
    end.says();
    let other = end.accepts(3);
    let mut given = 0;
    for _ in 0..50 {
        end.hear(&frame(DATA, 0, 3, &[7; 20_000])).unwrap();
        while matches!(end.engine.take(other), Taken::Piece(_)) {}
        for (head, more) in end.says() {
            if head.stream == 0 {
                given += number(&more);
            }
        }
    }
    assert!(given > 900_000, "{given}");
    assert_eq!(end.engine.holds().0, 100_000);
}

#[test]
fn padding_costs_the_peer_nothing_in_the_end() {
    let mut end = End::server(&brief());
    let slot = end.accepts(1);
    let padded = [&[255][..], b"data", &[0; 255]].concat();
    let mut credit = 0;
    for _ in 0..1000 {
        end.hear(&frame(DATA, PADDED, 1, &padded)).unwrap();
        assert_eq!(
            end.engine.take(slot),
            Taken::Piece(Bytes::from_static(b"data"))
        );
        credit += end
            .says()
            .iter()
            .filter(|(head, _)| head.stream == 1)
            .map(|(_, more)| number(more))
            .sum::<u32>();
    }
    assert!(credit > 150_000, "{credit}");
    assert!(end.engine.failure(slot).is_none());
}

#[test]
fn sends_no_more_than_the_peer_allows_and_goes_on_when_it_allows_more() {
    let mut end = End::client(&brief());
    let (slot, id) = end.opens();
    assert_eq!(end.engine.room(slot), Ok(65_535));
    end.engine.send(slot, Bytes::from(vec![1; 65_535]));
    assert_eq!(end.engine.room(slot), Ok(0));
    end.engine.await_room(slot);
    let lengths =
        |said: &Said| -> Vec<usize> { said.iter().map(|(head, _)| head.length).collect() };
    // In frames that any peer takes.
    assert_eq!(lengths(&end.says()), [16_384, 16_384, 16_384, 16_383]);
    assert!(end.engine.news().is_none(), "there is no room yet");
    end.hear(&credit(id, 1000)).unwrap();
    assert_eq!(end.engine.news(), Some((slot, false, true)));
    end.engine.send(slot, Bytes::from(vec![2; 1000]));
    assert!(end.says().is_empty(), "the connection has no credit");
    end.hear(&credit(0, 600)).unwrap();
    assert_eq!(lengths(&end.says()), [600]);
    end.engine.close(slot).unwrap();
    end.hear(&credit(0, 10_000)).unwrap();
    let said = end.says();
    assert_eq!((said[0].0.length, said[0].0.flags), (400, END_STREAM));
    assert_eq!(said.len(), 1, "the end goes with the last data");
}

#[test]
fn an_end_needs_no_credit() {
    let mut end = End::client(&brief());
    let (slot, _) = end.opens();
    let (other, id) = end.opens();
    end.engine.send(slot, Bytes::from(vec![1; 65_535]));
    end.says();
    end.engine.close(slot).unwrap();
    end.engine.send(other, Bytes::from_static(b"waits"));
    end.engine.close(other).unwrap();
    let said = end.says();
    assert_eq!((said[0].0.length, said[0].0.flags), (0, END_STREAM));
    assert_eq!(said.len(), 1);
    end.hear(&credit(0, 5)).unwrap();
    assert_eq!(kinds(&end.says()), [(DATA, id)]);
}

#[test]
fn a_window_that_the_peer_takes_back_may_be_below_zero() {
    let mut end = End::client(&brief());
    let (slot, id) = end.opens();
    end.engine.send(slot, Bytes::from(vec![1; 60_000]));
    end.says();
    end.hear(&setting(INITIAL_WINDOW_SIZE, 50_000)).unwrap();
    assert_eq!(kinds(&end.says()), [(SETTINGS, 0)]);
    assert_eq!(end.engine.room(slot), Ok(0));
    end.hear(&credit(id, 10_000)).unwrap();
    assert_eq!(end.engine.room(slot), Ok(0), "exactly nothing");
    end.hear(&credit(id, 7)).unwrap();
    assert_eq!(end.engine.room(slot), Ok(7));
    end.hear(&setting(INITIAL_WINDOW_SIZE, 50_100)).unwrap();
    assert_eq!(end.engine.room(slot), Ok(107));
    let (later, _) = {
        end.says();
        end.opens()
    };
    assert_eq!(end.engine.room(later), Ok(50_100));
    // One that would be larger than any is the connection's error.
    end.hear(&credit(id, MOST - 200)).unwrap();
    let broken = end.hear(&setting(INITIAL_WINDOW_SIZE, MOST)).unwrap_err();
    assert_eq!(broken.code, Code::FLOW_CONTROL_ERROR);
}

#[test]
fn streams_take_turns_a_frame_each() {
    let mut end = End::client(&brief());
    end.hear(&credit(0, 1 << 20)).unwrap();
    let streams: Vec<_> = (0..3).map(|_| end.opens()).collect();
    for (slot, _) in &streams {
        end.engine.send(*slot, Bytes::from(vec![1; 40_000]));
    }
    let ids: Vec<u32> = end.says().iter().map(|(head, _)| head.stream).collect();
    assert_eq!(ids, [1, 3, 5, 1, 3, 5, 1, 3, 5]);
    end.hear(&setting(MAX_FRAME_SIZE, 1 << 20)).unwrap();
    end.hear(&credit(1, 1 << 20)).unwrap();
    end.says();
    end.engine.send(streams[0].0, Bytes::from(vec![1; 130_000]));
    let lengths: Vec<usize> = end.says().iter().map(|(head, _)| head.length).collect();
    let piece = Settings::default().send_piece;
    assert_eq!(
        lengths,
        [piece, 130_000 - piece],
        "no longer than one of ours"
    );
}

#[test]
fn streams_that_nobody_acted_on_are_told_apart() {
    let mut end = End::client(&brief());
    let streams: Vec<_> = (0..3).map(|_| end.opens()).collect();
    let good_bye = |last: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat());
    end.hear(&good_bye(MOST)).unwrap();
    assert!(!end.engine.takes_streams());
    assert_eq!(end.engine.open_streams(), 3);
    end.hear(&good_bye(3)).unwrap();
    assert_eq!(
        end.engine.failure(streams[2].0),
        Some((Failure::NotAccepted, false))
    );
    assert_eq!(end.engine.open_streams(), 2);
    end.hear(&frame(DATA, END_STREAM, 1, b"goes on")).unwrap();
    assert!(matches!(end.engine.take(streams[0].0), Taken::Piece(_)));
}

#[test]
fn leaving_waits_for_what_is_on_its_way() {
    let mut end = End::server(&brief());
    end.accepts(1);
    end.engine.leave();
    end.engine.leave();
    let said = end.says();
    assert_eq!(kinds(&said), [(GOAWAY, 0), (PING, 0)]);
    assert_eq!(number(&said[0].1[..4]), MOST);
    assert!(!end.engine.has_left());
    let slot = end.accepts(3); // was sent before the good-bye arrived
    end.hear(&frame(PING, ACK, 0, &said[1].1)).unwrap();
    end.hear(&frame(PING, ACK, 0, &said[1].1)).unwrap();
    let said = end.says();
    assert_eq!(kinds(&said), [(GOAWAY, 0)]);
    assert_eq!(number(&said[0].1[..4]), 3);
    assert!(end.engine.has_left());
    // Too late: nobody acts on it, and its frames are no error.
    end.hear(&[request(5), frame(DATA, 0, 5, b"x")].concat())
        .unwrap();
    assert!(end.engine.next_request().is_none() && end.says().is_empty());
    assert!(end.engine.failure(slot).is_none());
}

#[test]
fn a_stream_that_is_let_go_is_reset_behind_what_it_was_left() {
    for (ends, code) in [(true, Code::NO_ERROR), (false, Code::CANCEL)] {
        let mut end = End::server(&brief());
        let slot = end.accepts(1);
        end.engine.send(slot, Bytes::from(vec![1; 20_000]));
        if ends {
            end.engine.close(slot).unwrap();
        }
        end.engine.drop_reader(slot);
        end.engine.drop_writer(slot);
        let said = end.says();
        assert_eq!(kinds(&said), [(DATA, 1), (DATA, 1), (RST_STREAM, 1)]);
        assert_eq!(number(&said[2].1), code.0);
        assert_eq!(said[1].0.flags, u8::from(ends));
        assert!(end.engine.slots.is_empty());
    }
}

#[test]
fn an_idle_stream_is_small() {
    let size = size_of::<super::Stream>();
    assert!(size <= 200, "{size}");
    let mut end = End::server(&brief());
    let slot = end.accepts(1);
    for _ in 0..10 {
        end.hear(&frame(DATA, 0, 1, b"some").repeat(3)).unwrap();
        while matches!(end.engine.take(slot), Taken::Piece(_)) {}
        end.engine.send(slot, Bytes::from_static(b"answer"));
        end.says();
    }
    let stream = &end.engine.slots[slot];
    assert!(stream.inbox.is_empty() && stream.outbox.is_empty());
    assert!(stream.message.is_none());
}

#[test]
fn more_streams_than_the_peer_was_told_are_refused() {
    let settings = Settings {
        max_streams: 2,
        ..brief()
    };
    let mut end = End::server(&settings);
    end.hear(&[request(1), request(3), request(5)].concat())
        .unwrap();
    let said = end.says();
    assert_eq!(kinds(&said), [(RST_STREAM, 5)]);
    assert_eq!(number(&said[0].1), Code::REFUSED_STREAM.0);
    end.hear(&reset(1, Code::CANCEL)).unwrap();
    end.hear(&request(7)).unwrap();
    assert!(end.says().is_empty());
    let mut client = End::client(&brief());
    client.hear(&setting(MAX_CONCURRENT_STREAMS, 1)).unwrap();
    client.says();
    let (slot, id) = client.opens();
    assert!(!client.engine.can_open() && client.engine.takes_streams());
    client.hear(&reset(id, Code::CANCEL)).unwrap();
    assert!(client.engine.opened_up() && client.engine.can_open());
    assert!(client.engine.failure(slot).is_some());
}

/// Frames of which an engine may make something.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let stream = prop_oneof![Just(0u32), Just(1), Just(3), Just(5), Just(7)];
    let one = (0..11u8, any::<u8>(), stream, vec(any::<u8>(), 0..20)).prop_map(
        |(kind, flags, stream, payload)| match kind {
            0 => request(stream | 1),
            1 => accepted(stream | 1),
            2 => credit(stream, u32::from(flags) * 1000),
            3 => frame(DATA, flags & 9, stream | 1, &payload.repeat(200)),
            kind => frame(kind, flags, stream, &payload),
        },
    );
    (any::<u8>(), vec(one, 0..60)).prop_map(|(step, frames)| {
        let settings = frame(SETTINGS, 0, 0, &[]);
        [&[step][..], &settings, &frames.concat()].concat()
    })
}

proptest! {
    #[test]
    fn whatever_is_told_it_stays_whole(bytes in anything()) {
        fuzzing::told(&bytes);
    }
}
