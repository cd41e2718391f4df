//! What a peer may not say, and what it ends.

use super::super::frame::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE, MOST, PADDED, PING, PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE,
};
use super::super::{Code, Engine, Failure, Limits};
use super::{End, brief, credit, frame, kinds, number, request, reset, setting};

/// What is wrong, the code that says so, and the bytes.
type Bad = (&'static str, Code, Vec<u8>);

/// Frames on streams 1 and 5, which are open, and on others, which are not.
fn bad_on_streams() -> Vec<Bad> {
    let bad = |what: &'static str, code: Code, bytes: Vec<u8>| (what, code, bytes);
    let protocol = Code::PROTOCOL_ERROR;
    let size = Code::FRAME_SIZE_ERROR;
    vec![
        bad("data of no stream", protocol, frame(DATA, 0, 0, b"x")),
        bad(
            "data on a stream that never was",
            protocol,
            frame(DATA, 0, 9, b"x"),
        ),
        bad(
            "data on a stream of ours",
            protocol,
            frame(DATA, 0, 2, b"x"),
        ),
        bad(
            "padding beyond the data",
            protocol,
            frame(DATA, PADDED, 1, &[5, 0]),
        ),
        bad("padding of nothing", size, frame(DATA, PADDED, 1, &[])),
        bad("a request of an even number", protocol, request(2)),
        bad("a request of an old number", protocol, request(3)),
        bad("a reset of no stream", protocol, reset(0, Code::CANCEL)),
        bad(
            "a reset of what never was",
            protocol,
            reset(9, Code::CANCEL),
        ),
        bad("half a reset", size, frame(RST_STREAM, 0, 1, &[0; 3])),
    ]
}

/// Settings that cannot be.
fn bad_settings() -> Vec<Bad> {
    let bad = |what: &'static str, code: Code, bytes: Vec<u8>| (what, code, bytes);
    let protocol = Code::PROTOCOL_ERROR;
    let size = Code::FRAME_SIZE_ERROR;
    vec![
        bad("half a setting", size, frame(SETTINGS, 0, 0, &[0; 5])),
        bad(
            "an answer with settings",
            size,
            frame(SETTINGS, ACK, 0, &[0; 6]),
        ),
        bad("settings of a stream", protocol, frame(SETTINGS, 0, 1, &[])),
        bad(
            "a window too large",
            Code::FLOW_CONTROL_ERROR,
            setting(INITIAL_WINDOW_SIZE, MOST + 1),
        ),
        bad(
            "frames too small",
            protocol,
            setting(MAX_FRAME_SIZE, 16_383),
        ),
        bad(
            "frames too large",
            protocol,
            setting(MAX_FRAME_SIZE, 1 << 24),
        ),
        bad("pushes of two", protocol, setting(2, 2)),
    ]
}

/// Frames of the connection, and some of no kind.
fn bad_on_the_connection() -> Vec<Bad> {
    let bad = |what: &'static str, code: Code, bytes: Vec<u8>| (what, code, bytes);
    let protocol = Code::PROTOCOL_ERROR;
    let size = Code::FRAME_SIZE_ERROR;
    vec![
        bad("a ping too short", size, frame(PING, 0, 0, &[0; 7])),
        bad("a ping of a stream", protocol, frame(PING, 0, 1, &[0; 8])),
        bad(
            "a good-bye of a stream",
            protocol,
            frame(GOAWAY, 0, 1, &[0; 8]),
        ),
        bad("half a good-bye", size, frame(GOAWAY, 0, 0, &[0; 7])),
        bad(
            "a push",
            protocol,
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4]),
        ),
        bad(
            "a priority of no stream",
            protocol,
            frame(PRIORITY, 0, 0, &[0; 5]),
        ),
        bad("half a priority", size, frame(PRIORITY, 0, 1, &[0; 4])),
        bad("credit of nothing", protocol, credit(0, 0)),
        bad("credit for what never was", protocol, credit(9, 1)),
        bad("half of credit", size, frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        bad(
            "credit without end",
            Code::FLOW_CONTROL_ERROR,
            credit(0, MOST),
        ),
        bad("a frame too long", size, frame(0xf0, 0, 0, &[0; 131_073])),
        bad(
            "the rest of another block",
            protocol,
            [
                frame(HEADERS, 0, 7, &[]),
                frame(CONTINUATION, END_HEADERS, 9, &[]),
            ]
            .concat(),
        ),
    ]
}

#[test]
fn what_ends_the_connection() {
    for (what, code, bytes) in bad_on_streams()
        .into_iter()
        .chain(bad_settings())
        .chain(bad_on_the_connection())
    {
        let mut end = End::server(&brief());
        end.accepts(1);
        end.accepts(5);
        let broken = end.hear(&bytes).unwrap_err();
        assert_eq!(broken.code, code, "{what}: {broken}");
        end.engine.end(Some(broken.code));
        let said = end.says();
        let (head, last) = said.last().unwrap();
        assert_eq!(head.kind, GOAWAY, "{what}");
        assert_eq!(
            last,
            &[5u32.to_be_bytes(), code.0.to_be_bytes()].concat(),
            "{what}"
        );
    }
}

#[test]
fn a_peer_must_begin_with_its_settings() {
    for first in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, ACK, 0, &[])] {
        let mut end = End::new(Engine::client(Limits::new(&brief(), 10)));
        assert_eq!(end.hear(&first).unwrap_err().code, Code::PROTOCOL_ERROR);
    }
    let mut end = End::new(Engine::server(Limits::new(&brief(), 10)));
    for byte in &PREFACE[..23] {
        end.hear(&[*byte]).unwrap();
        assert!(!end.engine.has_begun());
    }
    assert!(end.hear(b"x").is_err());
}

#[test]
fn what_ends_a_stream_and_no_other() {
    let bad = |what: &'static str, code: Code, bytes: Vec<u8>| (what, code, bytes);
    let cases = [
        bad("credit of nothing", Code::PROTOCOL_ERROR, credit(1, 0)),
        bad(
            "credit without end",
            Code::FLOW_CONTROL_ERROR,
            credit(1, MOST),
        ),
        bad(
            "headers in the middle",
            Code::PROTOCOL_ERROR,
            frame(HEADERS, END_HEADERS, 1, &[]),
        ),
        bad(
            "more than its window",
            Code::FLOW_CONTROL_ERROR,
            frame(DATA, 0, 1, &[0; 50_001]).repeat(2),
        ),
        bad(
            "data behind the end",
            Code::STREAM_CLOSED,
            frame(DATA, END_STREAM, 1, b"x").repeat(2),
        ),
        bad(
            "headers behind the end",
            Code::STREAM_CLOSED,
            [
                frame(DATA, END_STREAM, 1, b"x"),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &[]),
            ]
            .concat(),
        ),
    ];
    for (what, code, bytes) in cases {
        let mut end = End::server(&brief());
        let (slot, other) = (end.accepts(1), end.accepts(3));
        end.hear(&bytes).unwrap();
        let said = end.says();
        assert_eq!(kinds(&said), [(RST_STREAM, 1)], "{what}");
        assert_eq!(number(&said[0].1), code.0, "{what}");
        assert_eq!(
            end.engine.failure(slot).unwrap().0,
            Failure::ByUs(code),
            "{what}"
        );
        assert!(end.engine.failure(other).is_none(), "{what}");
        // Frames on their way are read and forgotten, and what they took of the connection's window is given back.
        end.hear(&frame(DATA, 0, 1, b"late")).unwrap();
        end.hear(&credit(1, 1)).unwrap();
        end.hear(&reset(1, Code::CANCEL)).unwrap();
        assert!(end.says().is_empty(), "{what}");
    }
}
