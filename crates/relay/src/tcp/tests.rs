//! Real connections over loopback: client, relay, server. Over every way that bytes may take.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ambit_net::splice::Pipe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{relay_by, split};
use crate::splice::Policy;
use crate::{Closed, How, Side, Unmetered, pipes};

mod splicing;

/// Everything here happens in milliseconds; this only bounds a failure.
const BOUND: Duration = Duration::from_secs(20);

fn make_pipe() -> ambit_net::Result<Pipe> {
    Pipe::new(pipes::ROOM)
}

/// A pipe of one page, so that everything ends in its middle.
fn make_small_pipe() -> ambit_net::Result<Pipe> {
    Pipe::new(4096)
}

fn make_none() -> ambit_net::Result<Pipe> {
    Err(ambit_net::Error::System {
        call: "pipe2",
        source: std::io::Error::from_raw_os_error(24),
    })
}

/// What the kernel refuses to splice into.
fn make_no_pipe() -> ambit_net::Result<Pipe> {
    let (one, two) = UnixStream::pair().unwrap();
    Ok(Pipe::of_ends(one.into(), two.into(), pipes::ROOM))
}

/// Spliced from the first byte.
static AT_ONCE: Policy = Policy {
    after: 0,
    make: make_pipe,
};
static AT_ONCE_SMALL: Policy = Policy {
    after: 0,
    make: make_small_pipe,
};
static EXHAUSTED: Policy = Policy {
    after: 0,
    make: make_none,
};
static REFUSED: Policy = Policy {
    after: 0,
    make: make_no_pipe,
};

/// Every way that bytes may take.
const WAYS: [&Policy; 6] = [
    &Policy::NEVER,
    &Policy::BULK,
    &AT_ONCE,
    &AT_ONCE_SMALL,
    &EXHAUSTED,
    &REFUSED,
];

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// A client and a server with a relay between them.
async fn relayed(way: &'static Policy) -> (TcpStream, TcpStream, JoinHandle<Closed>) {
    pipes::forget();
    let (client, accepted) = pair().await;
    let (dialled, server) = pair().await;
    let (accepted, dialled) = (split(accepted), split(dialled));
    let relaying = tokio::spawn(async move { relay_by(way, accepted, dialled, &Unmetered).await });
    (client, server, relaying)
}

async fn end(relaying: JoinHandle<Closed>) -> Closed {
    timeout(BOUND, relaying)
        .await
        .expect("the relay ends")
        .unwrap()
}

fn reset(stream: TcpStream) {
    ambit_net::options::reset_on_close(&stream).unwrap();
    drop(stream);
}

async fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let outcome = timeout(BOUND, stream.read_to_end(&mut bytes))
        .await
        .expect("the end comes");
    (bytes, outcome.err().map(|error| error.kind()))
}

#[tokio::test]
async fn passes_messages_and_both_ends_on() {
    for way in WAYS {
        let (mut client, mut server, relaying) = relayed(way).await;
        let mut buffer = [0; 8];
        for _ in 0..100 {
            client.write_all(b"question").await.unwrap();
            server.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"question");
            server.write_all(b"answers.").await.unwrap();
            client.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"answers.");
        }
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut server).await, (vec![], None));
        server.write_all(b"after the client's end").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(
            read_to_end(&mut client).await,
            (b"after the client's end".to_vec(), None)
        );
        let closed = end(relaying).await;
        assert!(matches!(closed.how, How::Clean));
        assert_eq!((closed.sent, closed.received), (800, 822));
    }
}

#[tokio::test]
async fn the_server_may_end_first() {
    for way in WAYS {
        let (mut client, mut server, relaying) = relayed(way).await;
        server.write_all(b"greeting").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut client).await, (b"greeting".to_vec(), None));
        client.write_all(b"still here").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(
            read_to_end(&mut server).await,
            (b"still here".to_vec(), None)
        );
        assert!(matches!(end(relaying).await.how, How::Clean));
    }
}

#[tokio::test]
async fn a_reset_by_either_side_is_a_reset_at_the_other() {
    for way in WAYS {
        let (client, mut server, relaying) = relayed(way).await;
        reset(client);
        let (_, error) = read_to_end(&mut server).await;
        assert_eq!(error, Some(ErrorKind::ConnectionReset));
        assert!(matches!(
            end(relaying).await.how,
            How::ResetBy(Side::Client)
        ));

        let (mut client, server, relaying) = relayed(way).await;
        reset(server);
        let (_, error) = read_to_end(&mut client).await;
        assert_eq!(error, Some(ErrorKind::ConnectionReset));
        assert!(matches!(
            end(relaying).await.how,
            How::ResetBy(Side::Server)
        ));
    }
}

#[tokio::test]
async fn a_reset_after_data_is_still_a_reset() {
    for way in WAYS {
        let (mut client, mut server, relaying) = relayed(way).await;
        client.write_all(b"half a mess").await.unwrap();
        server.read_exact(&mut [0; 11]).await.unwrap();
        reset(client);
        let (_, error) = read_to_end(&mut server).await;
        assert_eq!(error, Some(ErrorKind::ConnectionReset));
        end(relaying).await;
    }
}

#[tokio::test]
async fn a_reset_is_seen_while_the_other_side_reads_nothing() {
    for way in WAYS {
        let (mut client, server, relaying) = relayed(way).await;
        // Fill every buffer on the way, so that the relay is blocked writing to the server.
        let chunk = vec![7; 64 * 1024];
        let quiet = Duration::from_millis(300);
        while timeout(quiet, client.write_all(&chunk)).await.is_ok() {}
        reset(client);
        let closed = end(relaying).await;
        assert!(
            matches!(closed.how, How::ResetBy(Side::Client)),
            "{closed:?}"
        );
        drop(server);
    }
}

#[tokio::test]
async fn a_reset_after_the_clients_end_reaches_a_server_that_only_waits() {
    for way in WAYS {
        let (mut client, mut server, relaying) = relayed(way).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        server.read_exact(&mut [0; 8]).await.unwrap();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        reset(client);
        let closed = end(relaying).await;
        assert!(
            matches!(closed.how, How::ResetBy(Side::Client)),
            "{closed:?}"
        );
        // The server learns it without sending anything.
        let broken = timeout(BOUND, server.ready(tokio::io::Interest::ERROR)).await;
        broken.expect("the server sees the reset").unwrap();
    }
}

#[tokio::test]
async fn an_answer_before_a_refusal_arrives_whole() {
    for way in WAYS {
        for _ in 0..50 {
            let (mut client, mut server, relaying) = relayed(way).await;
            // The server answers and closes with the request unread, which the kernel makes a reset.
            client.write_all(&[1; 4096]).await.unwrap();
            server.readable().await.unwrap();
            server.write_all(b"413 too large").await.unwrap();
            drop(server);
            let (answer, _reset_or_end) = read_to_end(&mut client).await;
            assert_eq!(answer, b"413 too large");
            end(relaying).await;
        }
    }
}

#[tokio::test]
async fn cutting_a_relay_resets_both_sides() {
    for way in WAYS {
        let (mut client, mut server, relaying) = relayed(way).await;
        client.write_all(b"half a mess").await.unwrap();
        server.read_exact(&mut [0; 11]).await.unwrap();
        relaying.abort();
        for stream in [&mut client, &mut server] {
            let (_, error) = read_to_end(stream).await;
            assert_eq!(error, Some(ErrorKind::ConnectionReset));
        }
    }
}

/// The byte at a place in a stream that no shift or swap leaves unchanged.
fn byte(seed: u64, place: usize) -> u8 {
    let mixed = (place as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

/// Writes `total` bytes in pieces of random size, then ends.
async fn produce(stream: &mut WriteHalf<'_>, seed: u64, total: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut written = 0;
    while written < total {
        let next = (written + random.usize(1..90_000)).min(total);
        let piece: Vec<u8> = (written..next).map(|place| byte(seed, place)).collect();
        written = next;
        stream.write_all(&piece).await.unwrap();
        if random.bool() {
            tokio::task::yield_now().await;
        }
    }
    stream.shutdown().await.unwrap();
}

/// Reads to the end into buffers of random size and compares.
async fn consume(stream: &mut ReadHalf<'_>, seed: u64, total: usize) {
    let mut random = fastrand::Rng::with_seed(!seed);
    let mut buffer = vec![0; 100_000];
    let mut seen = 0;
    loop {
        let room = random.usize(1..buffer.len());
        let read = stream.read(&mut buffer[..room]).await.unwrap();
        if read == 0 {
            break;
        }
        for value in &buffer[..read] {
            assert_eq!(*value, byte(seed, seen), "at byte {seen}");
            seen += 1;
        }
    }
    assert_eq!(seen, total);
}

#[tokio::test]
async fn megabytes_both_ways_at_random_pace_arrive_exactly() {
    const TOTAL: usize = 8 << 20;
    for way in WAYS {
        let (mut client, mut server, relaying) = relayed(way).await;
        let (mut client_read, mut client_write) = client.split();
        let (mut server_read, mut server_write) = server.split();
        let all = async {
            tokio::join!(
                produce(&mut client_write, 1, TOTAL),
                consume(&mut server_read, 1, TOTAL),
                produce(&mut server_write, 2, TOTAL),
                consume(&mut client_read, 2, TOTAL),
            )
        };
        timeout(3 * BOUND, all).await.expect("no stall");
        let closed = end(relaying).await;
        assert!(matches!(closed.how, How::Clean));
        assert_eq!((closed.sent, closed.received), (TOTAL as u64, TOTAL as u64));
    }
}
