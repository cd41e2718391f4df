//! Peers that mean harm: each is a script of raw frames, and each has a bound.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use ambit_relay::Sink;
use ambit_tls::Peer;
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    connect, field, frame, open, reset,
};
use super::{live, paused, read, request};
use crate::client::handshake;
use crate::server::{Incoming, serve};
use crate::{Malformed, Settings, TunnelError};

/// A server and the raw end of its connection. What the server says is read and kept by a task, so
/// that its writes never stand still.
pub(super) async fn victim(peer: &Peer, settings: &Settings) -> (Incoming<DuplexStream>, Script) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (mut from, mut to) = tokio::io::split(near);
    let said = tokio::task::spawn_local(async move {
        let mut said = Vec::new();
        // A cut ends what was said as well as an end does.
        let _ = from.read_to_end(&mut said).await;
        said
    });
    to.write_all(PREFACE).await.unwrap();
    to.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let incoming = serve(far, peer.clone(), settings, std::future::pending())
        .await
        .unwrap();
    // Until this is in, the server's windows are the protocol's 65,535 bytes.
    to.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
    (incoming, Script { to, said })
}

pub(super) struct Script {
    pub(super) to: tokio::io::WriteHalf<DuplexStream>,
    pub(super) said: tokio::task::JoinHandle<Vec<u8>>,
}

impl Script {
    /// Sends until the server hangs up. Answers how many frames went out.
    pub(super) async fn flood(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> usize {
        let mut sent = 0;
        for frame in frames {
            if self.to.write_all(&frame).await.is_err() {
                break;
            }
            sent += 1;
        }
        sent
    }
}

/// Accepts whatever comes until the connection ends; answers why it ended.
pub(super) async fn accept_until_the_end(
    mut incoming: Incoming<DuplexStream>,
) -> Option<TunnelError> {
    let mut streams = Vec::new();
    while let Some(exchange) = incoming.next().await {
        if let Ok(exchange) = exchange {
            streams.extend(exchange.accept(HeaderMap::new()));
        }
    }
    incoming.ended().cloned()
}

pub(super) fn calm(ended: Option<&TunnelError>) -> bool {
    matches!(ended, Some(TunnelError::Misbehaved(text)) if text.contains("excessive load"))
}

#[test]
fn streams_reset_before_they_are_taken_end_the_connection() {
    live(async |peer| {
        let (incoming, mut script) = victim(&peer, &Settings::default()).await;
        let server = tokio::task::spawn_local(accept_until_the_end(incoming));
        let attack = (0..10_000u32).map(|n| {
            let stream = 2 * n + 1;
            [open(stream), reset(stream)].concat()
        });
        let sent = script.flood(attack).await;
        drop(script.to);
        let ended = server.await.unwrap();
        assert!(calm(ended.as_ref()), "{ended:?} after {sent}");
    });
}

#[test]
fn requests_given_up_while_they_are_handled_end_the_connection() {
    live(async |peer| {
        let (mut incoming, mut script) = victim(&peer, &Settings::default()).await;
        let server = tokio::task::spawn_local(async move {
            let mut taken = 0u32;
            while let Some(exchange) = incoming.next().await {
                taken += 1;
                let mut exchange = exchange.unwrap();
                tokio::task::spawn_local(async move { exchange.cancelled().await });
            }
            (taken, incoming.ended().cloned())
        });
        // One at a time, so that each is taken before it is reset.
        for n in 0..2_000u32 {
            let stream = 2 * n + 1;
            if script.to.write_all(&open(stream)).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            if script.to.write_all(&reset(stream)).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(script.to);
        let (taken, _ended) = server.await.unwrap();
        assert!((300..600).contains(&taken), "{taken} were handled");
        let said = script.said.await.unwrap();
        // GOAWAY with ENHANCE_YOUR_CALM (11).
        assert!(
            said.windows(5)
                .any(|w| w[..4] == [0, 0, 0, 11] || w == [7, 0, 0, 0, 0])
        );
    });
}

#[test]
fn requests_beyond_the_limit_are_refused_while_others_wait_for_their_answer() {
    live(async |peer| {
        let settings = Settings {
            max_streams: 10,
            ..Settings::default()
        };
        let (mut incoming, mut script) = victim(&peer, &settings).await;
        let mut waiting = Vec::new();
        script.flood((0..30u32).map(|n| open(2 * n + 1))).await;
        let soon = Duration::from_millis(100);
        while let Ok(Some(exchange)) = tokio::time::timeout(soon, incoming.next()).await {
            waiting.push(exchange.unwrap());
        }
        assert!(waiting.len() <= 10, "{}", waiting.len());
    });
}

#[test]
fn empty_frames_end_the_connection() {
    live(async |peer| {
        let (incoming, mut script) = victim(&peer, &Settings::default()).await;
        let server = tokio::task::spawn_local(accept_until_the_end(incoming));
        script.to.write_all(&open(1)).await.unwrap();
        let sent = script
            .flood((0..10_000).map(|_| frame(DATA, 0, 1, &[])))
            .await;
        drop(script.to);
        let ended = server.await.unwrap();
        assert!(calm(ended.as_ref()), "{ended:?} after {sent}");
    });
}

#[test]
fn single_bytes_are_not_an_attack_and_take_memory_by_the_byte() {
    live(async |peer| {
        let settings = Settings::default();
        let (mut incoming, mut script) = victim(&peer, &settings).await;
        script.to.write_all(&open(1)).await.unwrap();
        let stream = incoming
            .next()
            .await
            .unwrap()
            .unwrap()
            .accept(HeaderMap::new())
            .unwrap();
        let turning = tokio::task::spawn_local(async move {
            assert!(incoming.next().await.is_none());
        });
        let bytes = 200_000;
        assert_eq!(
            script
                .flood((0..bytes).map(|_| frame(DATA, 0, 1, b"x")))
                .await,
            bytes
        );
        script
            .to
            .write_all(&frame(PING, 0, 0, &[0; 8]))
            .await
            .unwrap();
        for _ in 0..1000 {
            tokio::task::yield_now().await; // everything sent is in by now
        }
        assert!(
            !turning.is_finished(),
            "a standing reader ended the connection"
        );
        let (mut source, _sink) = stream.split();
        let (mut total, mut pieces) = (0, 0);
        while total < bytes {
            total += read(&mut source).await.unwrap().unwrap().len();
            pieces += 1;
        }
        assert_eq!(total, bytes);
        assert!(pieces < bytes / 1000, "{pieces} pieces");
    });
}

#[test]
fn header_bombs_are_refused() {
    live(async |peer| {
        let (mut incoming, mut script) = victim(&peer, &Settings::default()).await;
        let bomb: Vec<u8> = connect()
            .into_iter()
            .chain((0..700).flat_map(|_| field(b"x", &[b'y'; 60])))
            .collect();
        let mut pieces: Vec<Vec<u8>> = bomb.chunks(16_000).map(<[u8]>::to_vec).collect();
        let last = pieces.pop().unwrap();
        script
            .to
            .write_all(&frame(HEADERS, 0, 1, &pieces[0]))
            .await
            .unwrap();
        for piece in &pieces[1..] {
            script
                .to
                .write_all(&frame(CONTINUATION, 0, 1, piece))
                .await
                .unwrap();
        }
        script
            .to
            .write_all(&frame(CONTINUATION, END_HEADERS, 1, &last))
            .await
            .unwrap();
        let soon = Duration::from_millis(200);
        match tokio::time::timeout(soon, incoming.next()).await {
            Err(_) | Ok(None) => {}
            Ok(Some(item)) => panic!("{item:?}"),
        }
    });
}

#[test]
fn a_header_block_without_end_ends_the_connection() {
    live(async |peer| {
        let (incoming, mut script) = victim(&peer, &Settings::default()).await;
        let server = tokio::task::spawn_local(accept_until_the_end(incoming));
        script
            .to
            .write_all(&frame(HEADERS, 0, 1, &connect()))
            .await
            .unwrap();
        let sent = script
            .flood((0..100_000).map(|_| frame(CONTINUATION, 0, 1, &[])))
            .await;
        drop(script.to);
        assert!(server.await.unwrap().is_some(), "after {sent}");
    });
}

#[test]
fn pings_without_reading_the_answers_do_not_pile_up() {
    paused(async |peer| {
        let (near, far) = tokio::io::duplex(4096);
        let (from, mut to) = tokio::io::split(near);
        to.write_all(PREFACE).await.unwrap();
        to.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        let mut incoming = serve(far, peer, &Settings::default(), std::future::pending())
            .await
            .unwrap();
        let server = tokio::task::spawn_local(async move { incoming.next().await.is_none() });
        let mut sent = 0u32;
        let soon = Duration::from_secs(1);
        let ping = frame(PING, 0, 0, &[1; 8]);
        while sent < 100_000
            && matches!(
                tokio::time::timeout(soon, to.write_all(&ping)).await,
                Ok(Ok(()))
            )
        {
            sent += 1;
        }
        assert!(sent < 10_000, "{sent} pings were taken in");
        // Deaf to its own answers, it looks silent in the end, and is let go.
        assert!(server.await.unwrap());
        drop(from);
    });
}

#[test]
fn what_is_no_connect_is_answered_400_and_the_rest_goes_on() {
    live(async |peer| {
        let (mut incoming, mut script) = victim(&peer, &Settings::default()).await;
        let get = [
            field(b":method", b"GET"),
            field(b":scheme", b"http"),
            field(b":authority", b"a:1"),
            field(b":path", b"/"),
        ]
        .concat();
        let nowhere = [
            field(b":method", b"CONNECT"),
            field(b":authority", b"no-port"),
        ]
        .concat();
        script
            .to
            .write_all(&frame(HEADERS, END_HEADERS, 1, &get))
            .await
            .unwrap();
        script
            .to
            .write_all(&frame(HEADERS, END_HEADERS, 3, &nowhere))
            .await
            .unwrap();
        script.to.write_all(&open(5)).await.unwrap();
        assert_eq!(
            incoming.next().await.unwrap().unwrap_err(),
            Malformed::Method
        );
        assert_eq!(
            incoming.next().await.unwrap().unwrap_err(),
            Malformed::Authority
        );
        incoming.next().await.unwrap().unwrap();
    });
}

#[test]
fn bytes_that_are_no_http2_end_the_connection() {
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &b"PRI * HTTP/2.0\r\n\r\nXX"[..],
    ] {
        paused(async |peer| {
            let (mut near, far) = tokio::io::duplex(1024);
            near.write_all(garbage).await.unwrap();
            let served = serve(far, peer, &Settings::default(), std::future::pending()).await;
            assert!(served.is_err());
        });
    }
}

#[test]
fn more_than_the_window_ends_the_stream_or_the_connection() {
    live(async |peer| {
        let settings = Settings {
            stream_window: 65_535,
            ..Settings::default()
        };
        let (mut incoming, mut script) = victim(&peer, &settings).await;
        script.to.write_all(&open(1)).await.unwrap();
        let stream = incoming
            .next()
            .await
            .unwrap()
            .unwrap()
            .accept(HeaderMap::new())
            .unwrap();
        let turning = tokio::task::spawn_local(async move { incoming.next().await.is_none() });
        script
            .flood((0..20).map(|_| frame(DATA, 0, 1, &[0; 16_384])))
            .await;
        let (mut source, _sink) = stream.split();
        let mut total = 0;
        let failed = loop {
            match read(&mut source).await {
                Ok(Some(piece)) => total += piece.len(),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(failed && total <= 65_535 + 16_384, "{total}");
        turning.abort();
    });
}

#[test]
fn a_reset_right_behind_the_end_takes_back_nothing_of_what_was_sent() {
    // Together, as proxies send it that have no half-closed streams, and one after the other.
    for together in [true, false] {
        live(async |peer| {
            let (near, far) = tokio::io::duplex(1 << 20);
            let (tunnel, driver) = handshake(near, peer, &Settings::default()).await.unwrap();
            tokio::task::spawn_local(driver);
            let (mut from, mut to) = tokio::io::split(far);
            tokio::task::spawn_local(async move {
                let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
            });
            let opening = tokio::task::spawn_local(async move { tunnel.open(request()).await });
            tokio::task::yield_now().await;
            let answer = [
                frame(SETTINGS, 0, 0, &[]),
                frame(SETTINGS, ACK, 0, &[]),
                frame(HEADERS, END_HEADERS, 1, &[0x88]),
            ];
            to.write_all(&answer.concat()).await.unwrap();
            let stream = opening.await.unwrap().unwrap().stream;
            let (mut source, mut sink) = stream.split();
            let end = [
                frame(DATA, 0, 1, &[7; 10_000]),
                frame(DATA, END_STREAM, 1, &[7; 10_000]),
            ];
            // INTERNAL_ERROR, as Envoy says it.
            let reset = frame(RST_STREAM, 0, 1, &2u32.to_be_bytes());
            if together {
                let both = [end.concat(), reset].concat();
                to.write_all(&both).await.unwrap();
            } else {
                to.write_all(&end.concat()).await.unwrap();
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                to.write_all(&reset).await.unwrap();
            }
            // The reader is slow: it looks when all is there.
            let broken = std::future::poll_fn(|cx| sink.poll_broken(cx)).await;
            assert_eq!(broken.kind(), std::io::ErrorKind::BrokenPipe);
            let mut all = 0;
            while let Some(piece) = read(&mut source).await.unwrap() {
                all += piece.len();
            }
            assert_eq!(all, 20_000, "together: {together}");
        });
    }
}

/// A peer that has said all it will, and takes every answer. Counts what was taken of it.
struct Said {
    bytes: std::io::Cursor<Vec<u8>>,
    taken: Rc<Cell<u64>>,
}

impl AsyncRead for Said {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.bytes.position() == self.bytes.get_ref().len() as u64 {
            return Poll::Pending;
        }
        let result = Pin::new(&mut self.bytes).poll_read(cx, buf);
        self.taken.set(self.bytes.position());
        result
    }
}

impl AsyncWrite for Said {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_turn_of_the_thread_takes_few_frames_however_small_they_are() {
    const FRAMES: usize = 50_000;
    live(async |peer| {
        let all = [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, 0, &[]),
            frame(SETTINGS, ACK, 0, &[]),
            open(1),
            frame(DATA, 0, 1, b"x").repeat(FRAMES),
        ];
        let taken = Rc::new(Cell::new(0));
        let said = Said {
            bytes: std::io::Cursor::new(all.concat()),
            taken: Rc::clone(&taken),
        };
        let mut incoming = serve(said, peer, &Settings::default(), std::future::pending())
            .await
            .unwrap();
        let exchange = incoming.next().await.unwrap().unwrap();
        let _stream = exchange.accept(HeaderMap::new()).unwrap();
        let (mut turns, mut most) = (0, 0);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while taken.get() < 10 * FRAMES as u64 {
            let before = taken.get();
            assert!(incoming.poll_next(&mut cx).is_pending());
            turns += 1;
            most = most.max(taken.get() - before);
        }
        // What 1,024 frames are, and once more what the engine reads at a time.
        assert!(most < 10 * 1024 + 70_000, "{most} bytes in one of {turns}");
    });
}
