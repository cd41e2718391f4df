//! Streams: bytes, ends, resets, refusals, windows.

use std::io::ErrorKind;
use std::time::Duration;

use ambit_relay::Sink;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::{self, DATA, END_STREAM, SETTINGS, frame};
use super::{
    PEER, accept_all, close, ends, live, paused, read, read_to_end, request, verified, write,
};
use crate::client::handshake;
use crate::server::serve;
use crate::{OpenError, Settings, StreamIo, TunnelError};

#[test]
fn carries_bytes_both_ways_and_headers() {
    live(async |peer| {
        let (tunnel, mut incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        let server = tokio::task::spawn_local(async move {
            let exchange = incoming.next().await.unwrap().unwrap();
            assert_eq!(exchange.request().authority.to_string(), "10.0.0.1:80");
            assert_eq!(exchange.request().headers.get("baggage").unwrap(), "a=b");
            let mut headers = HeaderMap::new();
            headers.insert("baggage", HeaderValue::from_static("c=d"));
            let (mut source, mut sink) = exchange.accept(headers).unwrap().split();
            let echo = tokio::task::spawn_local(async move {
                let all = read_to_end(&mut source).await.unwrap();
                write(&mut sink, all).await.unwrap();
                close(&mut sink).await.unwrap();
            });
            assert!(incoming.next().await.is_none());
            assert!(incoming.ended().is_none());
            echo.await.unwrap();
        });
        let mut ask = request();
        ask.headers
            .insert("baggage", HeaderValue::from_static("a=b"));
        let opened = tunnel.open(ask).await.unwrap();
        assert_eq!(opened.headers.get("baggage").unwrap(), "c=d");
        let (mut source, mut sink) = opened.stream.split();
        let sent: Vec<u8> = (0..3_000_000u32)
            .map(|n| n.to_le_bytes()[n as usize % 3])
            .collect();
        write(&mut sink, sent.clone()).await.unwrap();
        close(&mut sink).await.unwrap();
        assert!(read_to_end(&mut source).await.unwrap() == sent);
        drop((source, sink, tunnel));
        server.await.unwrap();
    });
}

#[test]
fn each_direction_ends_by_itself() {
    live(async |peer| {
        let (tunnel, incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        let mut streams = accept_all(incoming);
        for client_first in [true, false] {
            let (mut near_in, mut near_out) = tunnel.open(request()).await.unwrap().stream.split();
            let (mut far_in, mut far_out) = streams.recv().await.unwrap().split();
            let (first_out, first_in, second_out, second_in) = if client_first {
                (&mut near_out, &mut far_in, &mut far_out, &mut near_in)
            } else {
                (&mut far_out, &mut near_in, &mut near_out, &mut far_in)
            };
            write(first_out, "first").await.unwrap();
            close(first_out).await.unwrap();
            assert_eq!(read_to_end(first_in).await.unwrap(), b"first");
            for _ in 0..3 {
                write(second_out, "second").await.unwrap();
                assert_eq!(read(second_in).await.unwrap().unwrap(), "second");
            }
            close(second_out).await.unwrap();
            assert_eq!(read(second_in).await.unwrap(), None);
            assert_eq!(read(second_in).await.unwrap(), None);
        }
    });
}

#[test]
fn a_reset_stays_a_reset_in_each_direction() {
    live(async |peer| {
        let (tunnel, incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        let mut streams = accept_all(incoming);
        for client_resets in [true, false] {
            let (near_in, near_out) = tunnel.open(request()).await.unwrap().stream.split();
            let (far_in, far_out) = streams.recv().await.unwrap().split();
            let ((mut by_in, mut by_out), (mut of_in, mut of_out)) = if client_resets {
                ((near_in, near_out), (far_in, far_out))
            } else {
                ((far_in, far_out), (near_in, near_out))
            };
            write(&mut by_out, "before").await.unwrap();
            assert_eq!(read(&mut of_in).await.unwrap().unwrap(), "before");
            by_out.reset();
            assert_eq!(
                read(&mut of_in).await.unwrap_err().kind(),
                ErrorKind::ConnectionReset
            );
            let broken = std::future::poll_fn(|cx| of_out.poll_broken(cx)).await;
            assert_eq!(broken.kind(), ErrorKind::ConnectionReset);
            assert_eq!(
                write(&mut of_out, vec![0; 4096]).await.unwrap_err().kind(),
                ErrorKind::ConnectionReset
            );
            assert!(read(&mut by_in).await.is_err());
        }
        // The tunnel itself is as good as before.
        let opened = tunnel.open(request()).await.unwrap();
        drop(opened);
    });
}

#[test]
fn dropping_an_unfinished_stream_resets_it() {
    live(async |peer| {
        let (tunnel, incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        let mut streams = accept_all(incoming);
        drop(tunnel.open(request()).await.unwrap());
        let (mut source, _sink) = streams.recv().await.unwrap().split();
        assert_eq!(
            read(&mut source).await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(tunnel.live_streams(), 0);
    });
}

#[test]
fn ended_direction_arrives_whole_though_the_stream_is_broken_off_after() {
    live(async |peer| {
        let (tunnel, incoming) = ends(&peer, &Settings::default(), 4096).await;
        let mut streams = accept_all(incoming);
        let (mut near_in, near_out) = tunnel.open(request()).await.unwrap().stream.split();
        let (far_in, mut far_out) = streams.recv().await.unwrap().split();
        write(&mut far_out, vec![7; 200_000]).await.unwrap();
        close(&mut far_out).await.unwrap();
        far_out.reset();
        drop((far_in, far_out));
        assert_eq!(read_to_end(&mut near_in).await.unwrap().len(), 200_000);
        drop(near_out);
    });
}

#[test]
fn early_bytes_go_with_the_request_as_far_as_there_is_room() {
    live(async |peer| {
        for (window, sent) in [(1_000_000, 3000), (1000, 1000)] {
            let settings = Settings {
                stream_window: window,
                max_streams: 7,
                ..Settings::default()
            };
            let (tunnel, mut incoming) = ends(&peer, &settings, 16 * 1024).await;
            while tunnel.capacity() != settings.max_streams {
                tokio::task::yield_now().await; // the server's settings are on their way
            }
            let early = Bytes::from(vec![7; 3000]);
            let opening = tokio::task::spawn_local(tunnel.reserve().open_early(request(), early));
            let exchange = incoming.next().await.unwrap().unwrap();
            assert!(!opening.is_finished());
            let (mut source, _sink) = exchange.accept(HeaderMap::new()).unwrap().split();
            // The answer leaves when the connection is driven again.
            let first = read(&mut source).now_or_never().unwrap();
            assert_eq!(first.unwrap().unwrap(), vec![7; sent]);
            tokio::task::spawn_local(async move { while incoming.next().await.is_some() {} });
            let opened = opening.await.unwrap().unwrap();
            assert_eq!(opened.early, sent);
            let (_from, mut to) = opened.stream.split();
            close(&mut to).await.unwrap();
            assert!(read_to_end(&mut source).await.unwrap().is_empty());
        }
    });
}

#[test]
fn who_says_all_and_hangs_up_is_heard_to_the_end() {
    live(async |peer| {
        let (mut near, far) = tokio::io::duplex(4 << 20);
        // More than is read in a turn, and less than the stream's window.
        let (piece, pieces) = (vec![7; 16_000], 60);
        let mut words = [frames::PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        words.extend(frames::open(1));
        for left in (0..pieces).rev() {
            let flags = if left == 0 { END_STREAM } else { 0 };
            words.extend(frame(DATA, flags, 1, &piece));
        }
        near.write_all(&words).await.unwrap();
        drop(near); // nothing can be written to it any more
        let incoming = serve(far, peer, &Settings::default(), std::future::pending())
            .await
            .unwrap();
        let mut streams = accept_all(incoming);
        let (mut source, _sink) = streams.recv().await.unwrap().split();
        let heard = read_to_end(&mut source).await.unwrap();
        assert_eq!(heard.len(), pieces * piece.len());
    });
}

#[test]
fn statuses_other_than_success_are_refusals() {
    live(async |peer| {
        let (tunnel, mut incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        let statuses = [400, 401, 403, 503].map(|code| StatusCode::from_u16(code).unwrap());
        tokio::task::spawn_local(async move {
            for status in statuses {
                incoming.next().await.unwrap().unwrap().refuse(status);
            }
            incoming.next().await
        });
        for expected in statuses {
            match tunnel.open(request()).await {
                Err(OpenError::Refused { status, .. }) => assert_eq!(status, expected),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(tunnel.live_streams(), 0);
    });
}

#[test]
fn an_exchange_dropped_unanswered_is_a_reset() {
    live(async |peer| {
        let (tunnel, mut incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        tokio::task::spawn_local(async move {
            drop(incoming.next().await.unwrap().unwrap());
            incoming.next().await
        });
        assert!(matches!(
            tunnel.open(request()).await,
            Err(OpenError::Reset(_))
        ));
    });
}

#[test]
fn server_learns_that_a_request_was_given_up() {
    live(async |peer| {
        let (tunnel, mut incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        let (said, heard) = tokio::sync::oneshot::channel();
        tokio::task::spawn_local(async move {
            let mut exchange = incoming.next().await.unwrap().unwrap();
            tokio::task::spawn_local(async move {
                exchange.cancelled().await;
                said.send(()).unwrap();
            });
            incoming.next().await
        });
        let asking = tokio::time::timeout(Duration::from_millis(50), tunnel.open(request()));
        assert!(asking.await.is_err());
        heard.await.unwrap();
    });
}

#[test]
fn no_answer_is_a_timeout() {
    paused(async |peer| {
        let (tunnel, mut incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        tokio::task::spawn_local(async move {
            let _unanswered = incoming.next().await.unwrap();
            incoming.next().await
        });
        let limit = Settings::default().open_timeout;
        assert!(matches!(
            tunnel.open(request()).await,
            Err(OpenError::Timeout(waited)) if waited == limit
        ));
    });
}

#[test]
fn draining_refuses_new_streams_and_lets_old_ones_end() {
    live(async |peer| {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let settings = Settings::default();
        let (tunnel, driver) = handshake(near, peer.clone(), &settings).await.unwrap();
        let driver = tokio::task::spawn_local(driver);
        let (drain, draining) = tokio::sync::oneshot::channel::<()>();
        let draining = async move { drop(draining.await) };
        let incoming = serve(far, peer, &settings, draining).await.unwrap();
        let mut streams = accept_all(incoming);
        let (mut near_in, mut near_out) = tunnel.open(request()).await.unwrap().stream.split();
        let (mut far_in, mut far_out) = streams.recv().await.unwrap().split();
        drain.send(()).unwrap();
        while tunnel.is_ready() {
            tokio::task::yield_now().await;
        }
        let refused = tunnel.open(request()).await.unwrap_err();
        assert!(refused.is_safe_to_retry(), "{refused:?}");
        write(&mut near_out, "still here").await.unwrap();
        assert_eq!(read(&mut far_in).await.unwrap().unwrap(), "still here");
        close(&mut near_out).await.unwrap();
        close(&mut far_out).await.unwrap();
        assert_eq!(read(&mut near_in).await.unwrap(), None);
        assert_eq!(read(&mut far_in).await.unwrap(), None);
        drop((near_in, near_out, far_in, far_out));
        driver.await.unwrap().unwrap();
        assert!(streams.recv().await.is_none());
    });
}

#[test]
fn an_expired_certificate_ends_no_stream_and_admits_no_new_one_at_either_end() {
    let soon = Duration::from_secs(600);
    let brief = verified(soon);
    for (at_client, at_server) in [(true, false), (false, true)] {
        paused(async |peer| {
            let of = |expires: bool| if expires { &brief } else { &peer }.clone();
            let (near, far) = tokio::io::duplex(16 * 1024);
            let settings = Settings::default();
            let (tunnel, driver) = handshake(near, of(at_client), &settings).await.unwrap();
            tokio::task::spawn_local(driver);
            let never = std::future::pending();
            let incoming = serve(far, of(at_server), &settings, never).await.unwrap();
            let mut streams = accept_all(incoming);
            let (_near_in, mut near_out) = tunnel.open(request()).await.unwrap().stream.split();
            let (mut far_in, _far_out) = streams.recv().await.unwrap().split();
            tokio::time::sleep(soon / 2).await;
            assert!(tunnel.is_ready(), "not yet");
            tokio::time::sleep(soon).await;
            assert!(!tunnel.is_ready(), "client {at_client}, server {at_server}");
            write(&mut near_out, "still here").await.unwrap();
            assert_eq!(read(&mut far_in).await.unwrap().unwrap(), "still here");
            if at_server {
                let refused = tunnel.open(request()).await.unwrap_err();
                assert!(refused.is_safe_to_retry(), "{refused:?}");
            }
        });
    }
}

#[test]
fn a_hundred_streams_at_once() {
    live(async |peer| {
        let (tunnel, incoming) = ends(&peer, &Settings::default(), 64 * 1024).await;
        let mut streams = accept_all(incoming);
        tokio::task::spawn_local(async move {
            while let Some(stream) = streams.recv().await {
                tokio::task::spawn_local(async move {
                    let (mut source, mut sink) = stream.split();
                    while let Some(piece) = read(&mut source).await.unwrap() {
                        write(&mut sink, piece).await.unwrap();
                    }
                    close(&mut sink).await.unwrap();
                });
            }
        });
        let clients: Vec<_> = (0..100u8)
            .map(|n| {
                let tunnel = tunnel.clone();
                tokio::task::spawn_local(async move {
                    let (mut source, mut sink) =
                        tunnel.open(request()).await.unwrap().stream.split();
                    let sender = tokio::task::spawn_local(async move {
                        for _ in 0..50 {
                            write(&mut sink, vec![n; 3000]).await.unwrap();
                        }
                        close(&mut sink).await.unwrap();
                    });
                    let all = read_to_end(&mut source).await.unwrap();
                    sender.await.unwrap();
                    assert!(all == vec![n; 150_000]);
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        assert_eq!(tunnel.live_streams(), 0);
    });
}

#[test]
fn readers_that_stand_still_do_not_stall_their_neighbours() {
    live(async |peer| {
        let settings = Settings {
            stream_window: 128 * 1024,
            ..Settings::default()
        };
        let (tunnel, incoming) = ends(&peer, &settings, 64 * 1024).await;
        let mut streams = accept_all(incoming);
        let mut standing = Vec::new();
        for _ in 0..80 {
            let (source, mut sink) = tunnel.open(request()).await.unwrap().stream.split();
            let far = streams.recv().await.unwrap();
            // More than the window and our own buffer: this writer stands too.
            let writer =
                tokio::task::spawn_local(async move { write(&mut sink, vec![1; 1 << 20]).await });
            standing.push((source, far, writer));
        }
        let (_near_in, mut near_out) = tunnel.open(request()).await.unwrap().stream.split();
        let (mut far_in, _far_out) = streams.recv().await.unwrap().split();
        let writer = tokio::task::spawn_local(async move {
            write(&mut near_out, vec![2; 8 << 20]).await.unwrap();
            close(&mut near_out).await.unwrap();
            near_out
        });
        assert_eq!(read_to_end(&mut far_in).await.unwrap().len(), 8 << 20);
        writer.await.unwrap();
        for (_, far, writer) in standing {
            assert!(!writer.is_finished());
            let (mut source, _sink) = far.split();
            let mut left = 1 << 20;
            while left > 0 {
                left -= read(&mut source).await.unwrap().unwrap().len();
            }
            writer.await.unwrap().unwrap();
        }
    });
}

#[test]
fn a_standing_reader_full_of_single_bytes_does_not_end_its_neighbours() {
    live(async |peer| {
        let settings = Settings::default();
        let (tunnel, incoming) = ends(&peer, &settings, 64 * 1024).await;
        let mut streams = accept_all(incoming);
        let (_standing_in, mut standing_out) = tunnel.open(request()).await.unwrap().stream.split();
        let standing = streams.recv().await.unwrap();
        let (mut near_in, mut near_out) = tunnel.open(request()).await.unwrap().stream.split();
        let (mut far_in, mut far_out) = streams.recv().await.unwrap().split();
        for round in 0..60_000u32 {
            write(&mut standing_out, &b"x"[..]).await.unwrap();
            if round % 1000 == 0 {
                write(&mut near_out, "ping").await.unwrap();
                assert_eq!(read(&mut far_in).await.unwrap().unwrap(), "ping");
                write(&mut far_out, "pong").await.unwrap();
                assert_eq!(read(&mut near_in).await.unwrap().unwrap(), "pong");
            }
        }
        close(&mut standing_out).await.unwrap();
        let (mut source, _sink) = standing.split();
        assert!(read_to_end(&mut source).await.unwrap() == vec![b'x'; 60_000]);
    });
}

#[test]
fn losing_the_connection_fails_every_stream_and_not_as_an_end() {
    live(async |peer| {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let settings = Settings::default();
        let (tunnel, driver) = handshake(near, peer.clone(), &settings).await.unwrap();
        let driver = tokio::task::spawn_local(driver);
        let mut incoming = serve(far, peer, &settings, std::future::pending())
            .await
            .unwrap();
        let opening = tokio::task::spawn_local({
            let tunnel = tunnel.clone();
            async move { tunnel.open(request()).await.unwrap() }
        });
        let _far = incoming
            .next()
            .await
            .unwrap()
            .unwrap()
            .accept(HeaderMap::new())
            .unwrap();
        let turning = tokio::task::spawn_local(async move { incoming.next().await });
        let (mut source, mut sink) = opening.await.unwrap().stream.split();
        turning.abort();
        let failed = ErrorKind::ConnectionAborted;
        assert_eq!(read(&mut source).await.unwrap_err().kind(), failed);
        assert_eq!(
            write(&mut sink, vec![0; 100_000]).await.unwrap_err().kind(),
            failed
        );
        assert!(driver.await.unwrap().is_err());
        assert!(!tunnel.is_ready());
        assert!(matches!(
            tunnel.open(request()).await,
            Err(OpenError::Tunnel(_))
        ));
    });
}

#[test]
fn abort_ends_the_tunnel_and_its_streams() {
    live(async |peer| {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let settings = Settings::default();
        let (tunnel, driver) = handshake(near, peer.clone(), &settings).await.unwrap();
        let driver = tokio::task::spawn_local(driver);
        let incoming = serve(far, peer, &settings, std::future::pending())
            .await
            .unwrap();
        let mut streams = accept_all(incoming);
        let (mut near_in, _near_out) = tunnel.open(request()).await.unwrap().stream.split();
        let (mut far_in, _far_out) = streams.recv().await.unwrap().split();
        tunnel.abort("workload is gone");
        assert!(matches!(
            driver.await.unwrap(),
            Err(TunnelError::Closed("workload is gone"))
        ));
        assert!(read(&mut near_in).await.is_err());
        assert!(read(&mut far_in).await.is_err());
        assert!(!tunnel.is_ready());
    });
}

#[test]
fn a_silent_peer_is_taken_for_dead() {
    paused(async |peer| {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (tunnel, driver) = handshake(near, peer, &Settings::default()).await.unwrap();
        let started = tokio::time::Instant::now();
        let ended = tokio::task::spawn_local(driver).await.unwrap();
        assert!(matches!(ended, Err(TunnelError::Silent)));
        assert_eq!(started.elapsed().as_secs(), 30);
        assert!(matches!(tunnel.ended(), Some(TunnelError::Silent)));
        let mut said = Vec::new();
        far.read_to_end(&mut said).await.unwrap();
        assert!(
            said.windows(5).any(|w| w == [0, 0, 8, 6, 0]),
            "no PING was sent"
        );
    });
}

#[test]
fn a_probed_peer_has_seconds_to_give_a_sign_of_life() {
    paused(async |peer| {
        let (near, _far) = tokio::io::duplex(1 << 20);
        let settings = Settings::default();
        let (tunnel, driver) = handshake(near, peer.clone(), &settings).await.unwrap();
        let driver = tokio::task::spawn_local(driver);
        tokio::time::sleep(Duration::from_secs(12)).await;
        let asked = tokio::time::Instant::now();
        tunnel.probe();
        assert!(matches!(driver.await.unwrap(), Err(TunnelError::Silent)));
        assert_eq!(asked.elapsed().as_secs(), 5);

        let (tunnel, incoming) = ends(&peer, &settings, 16 * 1024).await;
        let mut streams = accept_all(incoming);
        for _ in 0..3 {
            tunnel.probe();
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        let opened = tunnel.open(request()).await.unwrap();
        streams.recv().await.unwrap();
        drop(opened);
    });
}

#[test]
fn an_idle_tunnel_between_living_peers_stays() {
    paused(async |peer| {
        let (tunnel, incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        let mut streams = accept_all(incoming);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let opened = tunnel.open(request()).await.unwrap();
        streams.recv().await.unwrap();
        drop(opened);
    });
}

#[test]
fn a_peer_that_never_starts_is_given_up() {
    paused(async |peer| {
        let (_near, far) = tokio::io::duplex(1024);
        let served = serve(far, peer, &Settings::default(), std::future::pending()).await;
        assert!(matches!(served, Err(TunnelError::Timeout(_))));
    });
}

#[test]
fn a_stream_serves_as_an_ordinary_byte_stream() {
    live(async |peer| {
        let (tunnel, incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        let mut streams = accept_all(incoming);
        let mut near = StreamIo::from(tunnel.open(request()).await.unwrap().stream);
        let mut far = StreamIo::from(streams.recv().await.unwrap());
        let echo = tokio::task::spawn_local(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            far.write_all(&all).await.unwrap();
            far.shutdown().await.unwrap();
        });
        let sent = vec![9; 2_000_000];
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
        echo.await.unwrap();
    });
}

#[test]
fn the_verified_peer_is_known_at_both_ends() {
    let expected = PEER.clone();
    live(async |peer| {
        let (tunnel, mut incoming) = ends(&peer, &Settings::default(), 16 * 1024).await;
        assert_eq!(tunnel.peer(), &expected);
        assert_eq!(incoming.peer(), &expected);
        let opening = tokio::task::spawn_local(async move { tunnel.open(request()).await });
        assert_eq!(incoming.next().await.unwrap().unwrap().peer(), &expected);
        opening.abort();
    });
}
