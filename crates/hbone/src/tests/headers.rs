//! Header blocks as peers may send them: what is malformed ends its own stream and no other.

use std::collections::BTreeMap;

use ambit_tls::Peer;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::{Strategy, any};
use proptest::test_runner::{Config, TestRunner};
use proptest::{collection, prop_assert_eq};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS,
    connect, field, frame, open,
};
use super::hostile::{Script, accept_until_the_end, calm, victim};
use super::{ends, live, read, request};
use crate::client::handshake;
use crate::{Request, Settings};

const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
const PROTOCOL_ERROR: u8 = 1;

/// A frame that was read: kind, flags, stream, and the last byte, which is the code of a reset.
type Said = (u8, u8, u32, u8);

fn frames_of(mut bytes: &[u8]) -> Vec<Said> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        let payload = rest.get(..length).unwrap_or_default();
        let last = payload.last().copied().unwrap_or_default();
        frames.push((head[3], head[4], stream, last));
        bytes = rest.get(length..).unwrap_or_default();
    }
    frames
}

fn block(stream: u32, fields: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, fields)
}

/// A field that goes into the table (RFC 7541 section 6.2.1).
fn kept(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut kept = field(name, value);
    kept[0] = 0x40;
    kept
}

fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let with = |name: &[u8], value: &[u8]| [connect(), field(name, value)].concat();
    let to = |authority: &[u8]| {
        [
            field(b":method", b"CONNECT"),
            field(b":authority", authority),
        ]
        .concat()
    };
    // `U` in upper case, compressed: seven bits, and a one for padding.
    let compressed = [connect(), vec![0, 0x81, 0xdd, 0x01, b'v']].concat();
    let large = (0..9).flat_map(|_| [&[0x40, 1, b'l', 0x7f, 0xb1, 0x1e][..], &[b'v'; 4016]]);
    vec![
        ("a field of the connection", with(b"connection", b"close")),
        ("a coding of the connection", with(b"te", b"gzip")),
        ("a name in upper case", with(b"UPPER", b"case")),
        ("a compressed name in upper case", compressed),
        ("a name of nothing", with(b"", b"value")),
        ("a name with a space", with(b"a name", b"value")),
        ("a name with a byte beyond ASCII", with(b"caf\xe9", b"x")),
        ("a line's end in a value", with(b"x", b"a\r\nb: c")),
        ("a zero in a value", with(b"x", b"a\0b")),
        ("a pseudo field nobody knows", with(b":nobody", b"knows")),
        ("a pseudo field of nothing", with(b":", b"x")),
        ("a pseudo field in upper case", with(b":Path", b"/")),
        ("a path", with(b":path", b"/")),
        ("two methods", with(b":method", b"GET")),
        ("an answer's field", with(b":status", b"200")),
        ("a status that is none", with(b":status", b"ok")),
        (
            "a pseudo field behind others",
            [
                field(b"x", b"y"),
                field(b":method", b"CONNECT"),
                field(b":authority", b"a:1"),
            ]
            .concat(),
        ),
        ("a method that is none", field(b":method", b"CON NECT")),
        ("an authority of garbage", to(b"a b\x01")),
        ("an authority that is no text", to(b"\xff\xfe")),
        ("no authority", field(b":method", b"CONNECT")),
        ("an authority of nothing", to(b"")),
        ("no method", field(b":authority", b"10.0.0.1:80")),
        ("nothing at all", Vec::new()),
        (
            "more than a list may be",
            large.flatten().copied().collect(),
        ),
    ]
}

/// An accepted stream, beside which others are tried.
async fn beside(peer: &Peer) -> (Script, crate::StreamSource, tokio::task::JoinHandle<u32>) {
    let (mut incoming, mut script) = victim(peer, &Settings::default()).await;
    script.to.write_all(&open(1)).await.unwrap();
    let stream = incoming.next().await.unwrap().unwrap();
    let stream = stream.accept(HeaderMap::new()).unwrap();
    let serving = tokio::task::spawn_local(async move {
        let mut taken = 0;
        while let Some(exchange) = incoming.next().await {
            taken += u32::from(exchange.is_ok());
        }
        taken
    });
    let (source, sink) = stream.split();
    tokio::task::spawn_local(async move {
        let _sink = sink; // until the test ends
        std::future::pending::<()>().await;
    });
    (script, source, serving)
}

#[test]
fn a_malformed_request_ends_its_own_stream_and_no_other() {
    live(async |peer| {
        let (mut script, mut source, serving) = beside(&peer).await;
        for (n, (what, fields)) in (1u32..).zip(malformed()) {
            script
                .to
                .write_all(&block(2 * n + 1, &fields))
                .await
                .unwrap();
            script
                .to
                .write_all(&frame(DATA, 0, 1, b"beside"))
                .await
                .unwrap();
            let piece = read(&mut source).await.unwrap().unwrap();
            assert_eq!(piece, "beside", "{what}");
        }
        script.to.shutdown().await.unwrap();
        assert_eq!(serving.await.unwrap(), 0, "none of them was handed out");
        let said = frames_of(&script.said.await.unwrap());
        for (n, (what, _)) in (1u32..).zip(malformed()) {
            let mut answers = said.iter().filter(|(_, _, stream, _)| *stream == 2 * n + 1);
            // A reset, or a refusal that ends the stream.
            assert!(
                answers.any(|(kind, flags, _, code)| {
                    (*kind == RST_STREAM && *code == PROTOCOL_ERROR)
                        || (*kind == HEADERS && flags & END_STREAM != 0)
                }),
                "{what}"
            );
        }
        assert!(!said.iter().any(|(kind, ..)| *kind == GOAWAY));
    });
}

#[test]
fn what_a_malformed_request_put_into_the_table_is_there_for_the_next() {
    live(async |peer| {
        let (mut incoming, mut script) = victim(&peer, &Settings::default()).await;
        let first = [connect(), kept(b"Bad", b"1"), kept(b"good", b"2")].concat();
        let good = [connect(), vec![0xbe]].concat(); // the field that was sent last
        let bad = [connect(), vec![0xbf]].concat(); // the one before it
        let all = [block(1, &first), block(3, &bad), block(5, &good)].concat();
        script.to.write_all(&all).await.unwrap();
        let exchange = incoming.next().await.unwrap().unwrap();
        assert_eq!(exchange.request().headers["good"], "2");
        assert_eq!(exchange.request().headers.len(), 1);
        exchange.accept(HeaderMap::new()).unwrap();
    });
}

#[test]
fn a_malformed_end_of_a_stream_ends_that_stream() {
    live(async |peer| {
        let (mut incoming, mut script) = victim(&peer, &Settings::default()).await;
        script
            .to
            .write_all(&[open(1), open(3)].concat())
            .await
            .unwrap();
        let mut streams = Vec::new();
        for _ in 0..2 {
            let exchange = incoming.next().await.unwrap().unwrap();
            streams.push(exchange.accept(HeaderMap::new()).unwrap().split());
        }
        tokio::task::spawn_local(async move { incoming.next().await.is_none() });
        let trailers = field(b"Trailer", b"x");
        let bad = frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers);
        let good = frame(DATA, END_STREAM, 3, b"whole");
        script.to.write_all(&[bad, good].concat()).await.unwrap();
        assert!(read(&mut streams[0].0).await.is_err());
        assert_eq!(read(&mut streams[1].0).await.unwrap().unwrap(), "whole");
        assert!(read(&mut streams[1].0).await.unwrap().is_none());
    });
}

#[test]
fn a_block_is_read_in_whatever_pieces_it_comes() {
    let fields = [connect(), field(b"x-name", b"value")].concat();
    let (begin, rest) = fields.split_at(11);
    let (middle, end) = rest.split_at(9);
    let padded = [&[3][..], &fields, &[0; 3]].concat();
    let both = [&[2, 0, 0, 0, 0, 9][..], &fields, &[0; 2]].concat();
    let pieces = [
        frame(HEADERS, 0, 1, begin),
        frame(CONTINUATION, 0, 1, middle),
        frame(CONTINUATION, END_HEADERS, 1, end),
    ];
    let forms = [
        block(1, &fields),
        pieces.concat(),
        frame(HEADERS, END_HEADERS | PADDED, 1, &padded),
        frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &both),
    ];
    // With frames before and behind it, in the same bytes.
    let ping = frame(6, 0, 0, &[0; 8]);
    for (form, size) in forms
        .iter()
        .flat_map(|form| [1, 2, 9, 10, 31, 1000].map(|size| (form, size)))
    {
        let all = [
            &ping[..],
            form,
            &ping,
            &frame(DATA, END_STREAM, 1, b"body"),
            &ping,
        ]
        .concat();
        live(async |peer| {
            let (mut incoming, mut script) = victim(&peer, &Settings::default()).await;
            tokio::task::spawn_local(async move {
                for piece in all.chunks(size) {
                    script.to.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                std::future::pending::<()>().await;
            });
            let exchange = incoming.next().await.unwrap().unwrap();
            assert_eq!(exchange.request().headers["x-name"], "value");
            assert_eq!(exchange.request().headers.len(), 1);
            let (mut source, _sink) = exchange.accept(HeaderMap::new()).unwrap().split();
            tokio::task::spawn_local(async move { incoming.next().await.is_none() });
            let body = super::read_to_end(&mut source).await.unwrap();
            assert_eq!(body, b"body", "pieces of {size}");
        });
    }
}

#[test]
fn what_is_no_header_block_ends_the_connection() {
    let cases = [
        ("a field by a number nobody has", block(1, &[0xbe])),
        ("half a field", block(1, &[0, 5, b'a'])),
        (
            "a table larger than was offered",
            block(1, &[0x3f, 0xe2, 0x1f]),
        ),
        (
            "a text that ends wrong",
            block(1, &[0, 0x81, 0x18, 1, b'a']),
        ),
        ("a block of no stream", block(0, &connect())),
        (
            "an end without a beginning",
            frame(CONTINUATION, END_HEADERS, 1, &connect()),
        ),
        (
            "a frame in a block",
            [frame(HEADERS, 0, 1, &connect()), frame(6, 0, 0, &[0; 8])].concat(),
        ),
        (
            "a block in two streams",
            [
                frame(HEADERS, 0, 1, &connect()),
                frame(CONTINUATION, END_HEADERS, 3, &[]),
            ]
            .concat(),
        ),
        (
            "more padding than there is",
            frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0]),
        ),
    ];
    for (what, bytes) in cases {
        live(async |peer| {
            let (incoming, mut script) = victim(&peer, &Settings::default()).await;
            let server = tokio::task::spawn_local(accept_until_the_end(incoming));
            script.to.write_all(&bytes).await.unwrap();
            let ended = server.await.unwrap();
            assert!(ended.is_some(), "{what}");
            drop(script.to);
            let said = frames_of(&script.said.await.unwrap());
            assert!(said.iter().any(|(kind, ..)| *kind == GOAWAY), "{what}");
        });
    }
}

#[test]
fn a_peer_that_sends_nothing_but_malformed_requests_loses_the_connection() {
    live(async |peer| {
        let (incoming, mut script) = victim(&peer, &Settings::default()).await;
        let server = tokio::task::spawn_local(accept_until_the_end(incoming));
        let upper = [connect(), field(b"UPPER", b"case")].concat();
        let sent = script
            .flood((0..10_000).map(|n| block(2 * n + 1, &upper)))
            .await;
        drop(script.to);
        let ended = server.await.unwrap();
        assert!(calm(ended.as_ref()), "{ended:?} after {sent}");
    });
}

#[test]
fn a_malformed_answer_ends_its_own_stream_and_no_other() {
    live(async |peer| {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (tunnel, driver) = handshake(near, peer, &Settings::default()).await.unwrap();
        tokio::task::spawn_local(driver);
        let (mut from, mut to) = tokio::io::split(far);
        tokio::task::spawn_local(async move {
            let _ = from.read_to_end(&mut Vec::new()).await;
        });
        let opening = [0; 3].map(|_| {
            let tunnel = tunnel.clone();
            tokio::task::spawn_local(async move { tunnel.open(request()).await })
        });
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let bad = |stream, name: &[u8]| {
            block(
                stream,
                &[&[0x88][..], &kept(name, b"x"), &kept(b"baggage", b"b")].concat(),
            )
        };
        let answers = [
            frame(SETTINGS, 0, 0, &[]),
            frame(SETTINGS, ACK, 0, &[]),
            bad(1, b"Bad"),
            bad(3, b":bad"),
            block(5, &[0x88, 0xbe]),
        ];
        to.write_all(&answers.concat()).await.unwrap();
        let [first, second, third] = opening;
        assert!(first.await.unwrap().is_err());
        assert!(second.await.unwrap().is_err());
        let opened = third.await.unwrap().unwrap();
        assert_eq!(opened.headers["baggage"], "b");
        assert!(tunnel.is_ready());
    });
}

/// Headers of a few requests; names and values come again, as those of one client do.
fn requests() -> impl Strategy<Value = Vec<BTreeMap<String, Vec<u8>>>> {
    let value = collection::vec(any::<u8>(), 0..200).prop_map(|mut value| {
        value.retain(|byte| HeaderValue::from_bytes(&[b'v', *byte, b'v']).is_ok());
        value
    });
    let value = proptest::prop_oneof!["[a-z0-9 =,;/-]{0,60}".prop_map(String::into_bytes), value,];
    let name = "x-[a-d]|baggage|forwarded|traceparent|via|date|[!#$%&'*+.^_`|~0-9a-z-]{1,20}";
    let name = name.prop_filter("is the connection's", |name: &String| {
        !["te", "upgrade", "connection"].contains(&name.as_str())
    });
    collection::vec(collection::btree_map(name, value, 0..8), 1..6)
}

#[test]
fn whatever_a_client_may_say_arrives() {
    let mut runner = TestRunner::new(Config::with_cases(64));
    let run = runner.run(&requests(), |requests| {
        let arrived = live(async |peer| {
            let (tunnel, mut incoming) = ends(&peer, &Settings::default(), 1 << 16).await;
            let mut arrived = Vec::new();
            for said in &requests {
                let headers = said.iter().map(|(name, value)| {
                    let name: HeaderName = name.parse().unwrap();
                    (name, HeaderValue::from_bytes(value).unwrap())
                });
                let request = Request {
                    headers: headers.collect(),
                    ..request()
                };
                let tunnel = tunnel.clone();
                let opening = tokio::task::spawn_local(async move { tunnel.open(request).await });
                let exchange = incoming.next().await.unwrap().unwrap();
                let headers = &exchange.request().headers;
                let headers: BTreeMap<_, _> = headers
                    .iter()
                    .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
                    .collect();
                arrived.push(headers);
                opening.abort();
            }
            arrived
        });
        prop_assert_eq!(arrived, requests);
        Ok(())
    });
    run.unwrap();
}
