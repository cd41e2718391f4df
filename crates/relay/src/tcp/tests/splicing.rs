//! What is so only where pipes are.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ambit_net::splice::Pipe;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{
    AT_ONCE, AT_ONCE_SMALL, BOUND, Closed, Duration, ErrorKind, How, JoinHandle, Side, WriteHalf,
    byte, consume, end, pair, read_to_end, relay_by, relayed, reset, split,
};
use crate::pipes::{self, ROOM, lent_and_kept};
use crate::splice::Policy;
use crate::{Meter, Source};

#[derive(Debug, Clone, Default)]
struct Counts(Arc<[AtomicU64; 2]>);

impl Counts {
    fn get(&self) -> [u64; 2] {
        [0, 1].map(|index| self.0[index].load(Ordering::Relaxed))
    }
}

impl Meter for Counts {
    fn sent(&self, bytes: u64) {
        self.0[0].fetch_add(bytes, Ordering::Relaxed);
    }

    fn received(&self, bytes: u64) {
        self.0[1].fetch_add(bytes, Ordering::Relaxed);
    }
}

/// As [`relayed`], with counts; and with a `dialled` connection that splice refuses, if so wanted.
async fn counted(
    way: &'static Policy,
    refuse: bool,
) -> (TcpStream, TcpStream, JoinHandle<Closed>, Counts) {
    pipes::forget();
    let (client, accepted) = pair().await;
    let (dialled, server) = pair().await;
    if refuse {
        // The kernel splices nothing into what is open for appending; a write does not care.
        let flags = OFlag::O_APPEND | OFlag::O_NONBLOCK;
        fcntl(&dialled, FcntlArg::F_SETFL(flags)).unwrap();
    }
    let (accepted, dialled) = (split(accepted), split(dialled));
    let counts = Counts::default();
    let meter = counts.clone();
    let relaying = tokio::spawn(async move { relay_by(way, accepted, dialled, &meter).await });
    (client, server, relaying, counts)
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    (0..length).map(|place| byte(seed, place)).collect()
}

/// Writes until nothing is taken any more and the relay holds a full pipe; answers how much was.
async fn fill(stream: &mut TcpStream) -> u64 {
    let piece = bytes(1, 64 * 1024);
    let mut written = 0;
    let quiet = Duration::from_millis(300);
    let filling = async {
        loop {
            match timeout(quiet, stream.write(&piece)).await {
                Ok(length) => written += length.unwrap() as u64,
                Err(_) if lent_and_kept().0 == 1 => return,
                Err(_) => {}
            }
            assert!(written < 1 << 30, "somebody holds a gibibyte");
        }
    };
    timeout(BOUND, filling).await.expect("it fills");
    written
}

/// Writes in pieces of any size with pauses of any length.
async fn trickle(stream: &mut WriteHalf<'_>, seed: u64, total: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let whole = bytes(seed, total);
    let mut rest = &whole[..];
    while !rest.is_empty() {
        let most = [1, 100, 5000, 70_000, 400_000][random.usize(..5)];
        let (piece, after) = rest.split_at(random.usize(1..=most).min(rest.len()));
        stream.write_all(piece).await.unwrap();
        rest = after;
        match random.u8(..4) {
            0 => tokio::time::sleep(Duration::from_micros(random.u64(1..3000))).await,
            1 => tokio::task::yield_now().await,
            _ => {}
        }
    }
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn pieces_of_any_size_after_pauses_of_any_length_arrive_exactly() {
    static SOON: Policy = Policy {
        after: 1,
        make: super::make_pipe,
    };
    for index in 0..20_usize {
        let seed = index as u64;
        let way = [&AT_ONCE, &AT_ONCE_SMALL, &SOON, &Policy::BULK][index % 4];
        let refuse = seed % 10 > 7;
        let totals = [index * 50_000, 1_000_000 - index * 50_000];
        let (mut client, mut server, relaying, counts) = counted(way, refuse).await;
        let (mut client_read, mut client_write) = client.split();
        let (mut server_read, mut server_write) = server.split();
        let all = async {
            tokio::join!(
                trickle(&mut client_write, seed, totals[0]),
                consume(&mut server_read, seed, totals[0]),
                trickle(&mut server_write, !seed, totals[1]),
                consume(&mut client_read, !seed, totals[1]),
            )
        };
        timeout(3 * BOUND, all).await.expect("no stall");
        let closed = end(relaying).await;
        assert!(matches!(closed.how, How::Clean), "{closed:?}");
        assert_eq!(counts.get(), totals.map(|total| total as u64));
        assert_eq!([closed.sent, closed.received], counts.get());
        assert_eq!(lent_and_kept().0, 0);
    }
}

#[tokio::test]
async fn begins_by_copying_splices_what_is_bulk_and_holds_no_pipe_at_rest() {
    let (mut client, mut server, relaying) = relayed(&Policy::BULK).await;
    let mut seen = vec![0; 4 << 20];
    for _ in 0..20 {
        client.write_all(b"question").await.unwrap();
        server.read_exact(&mut seen[..8]).await.unwrap();
    }
    assert_eq!(lent_and_kept(), (0, 0), "small messages make no pipe");
    let sent = bytes(3, 4 << 20);
    // How much comes at once, and so when it is bulk, is the kernel's to say.
    for _ in 0..50 {
        let (outcome, _) = tokio::join!(client.write_all(&sent), server.read_exact(&mut seen));
        outcome.unwrap();
        assert!(seen == sent);
        if lent_and_kept() != (0, 0) {
            break;
        }
    }
    // The relay's task sees on its next turn that nothing more comes.
    let resting = async {
        while lent_and_kept() != (0, 1) {
            tokio::task::yield_now().await;
        }
    };
    timeout(BOUND, resting).await.expect("the pipe comes back");
    for _ in 0..20 {
        client.write_all(b"question").await.unwrap();
        server.read_exact(&mut seen[..8]).await.unwrap();
    }
    drop((client, server));
    end(relaying).await;
    assert_eq!(lent_and_kept(), (0, 1), "one pipe served all of it");
}

#[tokio::test]
async fn ends_come_after_all_bytes_in_either_order() {
    for way in [&AT_ONCE, &AT_ONCE_SMALL, &Policy::BULK] {
        for client_first in [true, false] {
            let (client, server, relaying) = relayed(way).await;
            let (mut first, mut second) = if client_first {
                (client, server)
            } else {
                (server, client)
            };
            let (question, answer) = (bytes(5, 3 << 20), bytes(6, 2 << 20));
            let asking = async {
                first.write_all(&question).await.unwrap();
                first.shutdown().await.unwrap();
                read_to_end(&mut first).await
            };
            let answering = async {
                let seen = read_to_end(&mut second).await;
                second.write_all(&answer).await.unwrap();
                second.shutdown().await.unwrap();
                seen
            };
            let (answered, asked) = tokio::join!(asking, answering);
            assert!(asked == (question, None) && answered == (answer, None));
            assert!(matches!(end(relaying).await.how, How::Clean));
        }
    }
}

#[tokio::test]
async fn who_never_reads_holds_one_pipe_and_the_other_direction_flows() {
    let (mut client, mut server, relaying, counts) = counted(&AT_ONCE, false).await;
    let taken = fill(&mut client).await;
    assert!(
        counts.get()[0] < taken,
        "what waits in the pipe was not sent"
    );
    let answer = bytes(7, 2 << 20);
    let mut seen = vec![0; answer.len()];
    let both = async { tokio::join!(server.write_all(&answer), client.read_exact(&mut seen)) };
    timeout(BOUND, both)
        .await
        .expect("it flows")
        .0
        .expect("it is taken");
    assert!(seen == answer);
    assert_eq!(counts.get()[1], answer.len() as u64);
    // What was held up arrives once it is read.
    let mut rest = vec![0; usize::try_from(taken).unwrap()];
    timeout(BOUND, server.read_exact(&mut rest))
        .await
        .expect("it arrives")
        .unwrap();
    client.shutdown().await.unwrap();
    server.shutdown().await.unwrap();
    let closed = end(relaying).await;
    assert!(matches!(closed.how, How::Clean), "{closed:?}");
    assert_eq!([closed.sent, closed.received], [taken, answer.len() as u64]);
}

#[tokio::test]
async fn a_reset_behind_a_full_pipe_is_a_reset_at_the_other_side() {
    for by in [Side::Client, Side::Server] {
        let (mut client, server, relaying, _) = counted(&AT_ONCE, false).await;
        fill(&mut client).await;
        let mut other = match by {
            Side::Client => {
                reset(client);
                server
            }
            Side::Server => {
                reset(server);
                client
            }
        };
        let closed = end(relaying).await;
        assert!(
            matches!(closed.how, How::ResetBy(side) if side == by),
            "{closed:?}"
        );
        assert_eq!(lent_and_kept().0, 0);
        let (_, error) = read_to_end(&mut other).await;
        assert_eq!(error, Some(ErrorKind::ConnectionReset));
    }
}

#[tokio::test]
async fn cutting_a_relay_with_a_full_pipe_resets_both_sides() {
    let (mut client, mut server, relaying, _) = counted(&AT_ONCE, false).await;
    fill(&mut client).await;
    relaying.abort();
    for stream in [&mut client, &mut server] {
        let (_, error) = read_to_end(stream).await;
        assert_eq!(error, Some(ErrorKind::ConnectionReset));
    }
    assert_eq!(lent_and_kept().0, 0);
}

#[tokio::test]
async fn a_pipe_that_holds_bytes_is_not_lent_again() {
    let (mut client, accepted) = pair().await;
    client.write_all(b"not for others").await.unwrap();
    accepted.readable().await.unwrap();
    let mut pipe = pipes::lend(super::make_pipe).unwrap();
    assert_eq!(pipe.fill(&accepted).unwrap(), 14);
    pipes::give_back(pipe);
    assert_eq!(lent_and_kept(), (0, 0));
    pipes::give_back(pipes::lend(super::make_pipe).unwrap());
    assert_eq!(lent_and_kept(), (0, 1));
}

#[tokio::test]
async fn an_error_that_the_kernel_hid_behind_a_part_is_a_reset() {
    for cut_short in [true, false] {
        let (mut client, accepted) = pair().await;
        let (dialled, server) = pair().await;
        let mut pipe = Pipe::new(ROOM).unwrap();
        client.write_all(b"half a mess").await.unwrap();
        accepted.readable().await.unwrap();
        pipe.fill(&accepted).unwrap();
        reset(server);
        dialled.readable().await.unwrap();
        // Takes the error from the socket, as the kernel does when it cannot tell it.
        assert!(dialled.take_error().unwrap().is_some());
        let (mut source, sink) = split(dialled);
        let error = sink.drain(&mut pipe, cut_short).unwrap_err();
        let end = poll_fn(|cx| source.poll_next(cx)).await;
        if cut_short {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        } else {
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            assert_eq!(end.unwrap(), None);
        }
    }
}
