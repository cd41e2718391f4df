//! Peers that mean harm, with what they cost: memory of the whole process, and the time of a tunnel
//! beside them on the same thread.
//!
//! What each attack ends in is tested in `src/tests/hostile.rs`; here it goes on for as long as the
//! attacked side lets it. One attack runs at a time, since the process has one size.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_types,
    reason = "a test fails by panicking, also in its helpers; its lock is no data path's"
)]

#[path = "../src/tests/frames.rs"]
mod frames;

use std::future::poll_fn;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use ambit_hbone::{Request, Settings, Stream, StreamSink, client, server};
use ambit_model::identity::Identity;
use ambit_relay::{Sink, Source};
use ambit_tls::authority::{Request as Signing, Root};
use ambit_tls::csr::KeyAndCsr;
use ambit_tls::{Limits, Peer, Svid};
use ambit_wire::authority::Authority;
use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::LocalSet;

use frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, SETTINGS,
    connect, field, frame, open, reset,
};

const MIB: usize = 1024 * 1024;

/// What the process may grow by under an attack by frames: one turn's worth in every form it takes
/// inside the engine, and what the allocator keeps. Attacks that are not bounded bring a hundred
/// times that.
const FRAMES: usize = 24 * MIB;

/// The most that the thread may work between the beginning and the end of a round trip beside an
/// attack, without optimisation. Time in which a busy machine does something else does not count.
const SLOWEST: Duration = Duration::from_secs(1);

/// Bytes of an attack that nobody ends. What grows with it grows by ten times as much and more, since
/// the frames are small.
const ATTACK: usize = 4 * MIB;

/// Whoever takes nothing for this long waits for us.
const STANDS: Duration = Duration::from_millis(100);

const PRIORITY: u8 = 2;
const WINDOW_UPDATE: u8 = 8;

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

/// As much credit as there can be.
fn all_credit() -> Vec<u8> {
    let most = (1 << 31) - 1;
    [setting(4, most), window(0, most - 65_535)].concat()
}

/// The number of the `n`th stream that a client opens.
fn nth(n: u32) -> u32 {
    2 * n + 1
}

// Measures.

/// Largest resident size since [`forget_peak`], in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: usize = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib * 1024
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// CPU time of this thread.
fn worked() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<u64> = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap())
        .collect();
    // Hundredths of a second on every machine we run on (USER_HZ).
    Duration::from_millis(10 * (fields[0] + fields[1]))
}

/// Runs one attack alone and answers how much the process grew.
fn alone<F: Future<Output = ()>>(attack: impl FnOnce(Peer) -> F) -> usize {
    static ONE: Mutex<()> = Mutex::new(());
    static PEER: LazyLock<Peer> = LazyLock::new(verified);
    let peer = PEER.clone();
    // A test that failed leaves nothing behind that would spoil the next.
    let _one = ONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    forget_peak();
    let before = peak();
    let attack = attack(peer);
    LocalSet::new().block_on(&runtime, async {
        let most = Duration::from_secs(120);
        tokio::time::timeout(most, attack).await.unwrap();
    });
    peak().saturating_sub(before)
}

/// A verified peer, made the only way there is: by a handshake.
fn verified() -> Peer {
    let day = Duration::from_secs(86_400);
    let root = Root::generate("mesh", SystemTime::now(), 365 * day).unwrap();
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let asked = KeyAndCsr::generate(&identity).unwrap();
    let request = Signing::from_pem(&asked.csr_pem).unwrap();
    let chain = root
        .issue(&request, &identity, SystemTime::now(), day)
        .unwrap();
    let svid: Arc<Svid> = Svid::from_chain(&asked.key, &chain).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let expected = [svid.identity().clone()];
        let (client, server) = tokio::join!(
            ambit_tls::connect(&svid, near, &expected, Limits::default()),
            ambit_tls::accept(&svid, far, Limits::default())
        );
        client.unwrap();
        server.unwrap().1
    })
}

/// A tunnel between two honest ends on this thread. Goes round for as long as it is polled, and
/// panics when one round takes too long.
async fn neighbour(peer: &Peer) -> std::convert::Infallible {
    let settings = Settings::default();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (tunnel, driver) = client::handshake(near, peer.clone(), &settings)
        .await
        .unwrap();
    tokio::task::spawn_local(driver);
    let incoming = server::serve(far, peer.clone(), &settings, std::future::pending());
    let mut incoming = incoming.await.unwrap();
    tokio::task::spawn_local(async move {
        while let Some(Ok(exchange)) = incoming.next().await {
            let (mut source, mut sink) = exchange.accept(HeaderMap::new()).unwrap().split();
            tokio::task::spawn_local(async move {
                while let Ok(Some(piece)) = poll_fn(|cx| source.poll_next(cx)).await {
                    write(&mut sink, piece).await;
                }
            });
        }
    });
    let (mut source, mut sink) = tunnel.open(request()).await.unwrap().stream.split();
    loop {
        let begun = worked();
        write(&mut sink, Bytes::from_static(b"round")).await;
        let mut left = 5;
        while left > 0 {
            let piece = poll_fn(|cx| source.poll_next(cx)).await.unwrap();
            left -= piece.unwrap().len();
        }
        let took = worked() - begun;
        assert!(took < SLOWEST, "{took:?}");
    }
}

fn request() -> Request {
    Request {
        authority: Authority::parse(b"10.0.0.1:80").unwrap(),
        headers: HeaderMap::new(),
    }
}

/// Writes as long as the stream takes anything.
async fn write(sink: &mut StreamSink, mut data: Bytes) -> bool {
    while !data.is_empty() {
        if poll_fn(|cx| sink.poll_write(cx, &mut data)).await.is_err() {
            return false;
        }
    }
    poll_fn(|cx| sink.poll_flush(cx)).await.is_ok()
}

/// Sends `block` again and again, until the other side hangs up, takes nothing for a while, or has
/// taken [`ATTACK`]; `reads` says whether what it answers is taken. `hello` is what one end says first.
async fn lay_siege(
    near: DuplexStream,
    hello: &[u8],
    first: Vec<u8>,
    reads: bool,
    block: impl Fn(u32) -> Vec<u8>,
) {
    let (mut from, mut to) = tokio::io::split(near);
    let begin = [hello, &frame(SETTINGS, 0, 0, &[])].concat();
    to.write_all(&begin).await.unwrap();
    settled(&mut from).await;
    to.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
    let reading = tokio::task::spawn_local(async move {
        let mut taken = vec![0; 64 * 1024];
        while reads && from.read(&mut taken).await.is_ok_and(|length| length > 0) {}
        // Who does not read keeps the connection all the same.
        std::future::pending::<()>().await;
        drop(from);
    });
    let mut open = to.write_all(&first).await.is_ok();
    let (mut round, mut sent) = (0, 0);
    while open && sent < ATTACK {
        let block = block(round);
        let sending = to.write_all(&block);
        // A server that waits for its answers to be read takes nothing more: that is its right.
        open = match tokio::time::timeout(STANDS, sending).await {
            Ok(sent) => sent.is_ok(),
            Err(_elapsed) => break,
        };
        round += 1;
        sent += block.len();
    }
    if open {
        tokio::time::sleep(STANDS).await;
    }
    reading.abort();
}

/// Waits until the other side has said that it took our settings, and with that its own.
async fn settled(from: &mut (impl AsyncReadExt + Unpin)) {
    let ack = frame(SETTINGS, ACK, 0, &[]);
    let mut said = Vec::new();
    while !said.windows(ack.len()).any(|window| window == ack) {
        assert!(from.read_buf(&mut said).await.unwrap() > 0, "it hung up");
    }
}

/// What the application behind an accepted stream does.
#[derive(Clone, Copy)]
enum App {
    /// Neither reads nor writes.
    Stands,
    /// Writes all it can.
    Pours,
}

async fn serve_all(far: DuplexStream, peer: Peer, app: App) {
    let settings = Settings::default();
    let never = std::future::pending();
    let Ok(mut incoming) = server::serve(far, peer, &settings, never).await else {
        return;
    };
    while let Some(exchange) = incoming.next().await {
        let Ok(exchange) = exchange else { continue };
        let Ok(stream) = exchange.accept(HeaderMap::new()) else {
            continue;
        };
        tokio::task::spawn_local(behave(stream, app));
    }
}

async fn behave(stream: Stream, app: App) {
    match app {
        App::Stands => {
            let (_source, mut sink) = stream.split();
            // Held until the peer gives it up.
            poll_fn(|cx| sink.poll_broken(cx)).await;
        }
        App::Pours => {
            let (_source, mut sink) = stream.split();
            while write(&mut sink, vec![7; 64 * 1024].into()).await {}
        }
    }
}

/// Attacks a server of ours and answers how much the process grew.
fn server_grows(app: App, reads: bool, first: Vec<u8>, block: impl Fn(u32) -> Vec<u8>) -> usize {
    alone(async |peer| {
        let (near, far) = tokio::io::duplex(MIB);
        let serving = tokio::task::spawn_local(serve_all(far, peer.clone(), app));
        tokio::select! {
            never = neighbour(&peer) => match never {},
            () = lay_siege(near, PREFACE, first, reads, block) => {}
        }
        serving.abort();
    })
}

/// Attacks a client of ours that has opened one stream.
fn client_grows(reads: bool, first: Vec<u8>, block: impl Fn(u32) -> Vec<u8>) -> usize {
    alone(async |peer| {
        let (near, far) = tokio::io::duplex(MIB);
        let settings = Settings::default();
        let (tunnel, driver) = client::handshake(far, peer.clone(), &settings)
            .await
            .unwrap();
        tokio::task::spawn_local(driver);
        let opening = tokio::task::spawn_local(async move {
            if let Ok(opened) = tunnel.open(request()).await {
                behave(opened.stream, App::Pours).await;
            }
        });
        tokio::select! {
            never = neighbour(&peer) => match never {},
            () = lay_siege(near, &[], first, reads, block) => {}
        }
        opening.abort();
    })
}

/// Many of one frame, so that the attacker is not the slow one.
fn many(frame: &[u8]) -> impl Fn(u32) -> Vec<u8> {
    let block = frame.repeat(8192 / frame.len() + 1);
    move |_| block.clone()
}

/// Floods of frames that belong to no stream, or to one that is there.
fn floods() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("settings (CVE-2019-9515)", frame(SETTINGS, 0, 0, &[])),
        (
            "windows to and fro",
            [setting(4, 0), setting(4, (1 << 31) - 1)].concat(),
        ),
        (
            "header tables to and fro",
            [setting(1, 0), setting(1, u32::MAX)].concat(),
        ),
        ("pings (CVE-2019-9512)", frame(PING, 0, 0, &[0; 8])),
        ("answers to no ping", frame(PING, ACK, 0, &[1; 8])),
        (
            "priorities (CVE-2019-9513)",
            frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]),
        ),
        ("credit by the byte (CVE-2019-9511)", window(1, 1)),
        ("empty frames (CVE-2019-9518)", frame(DATA, 0, 1, &[])),
        (
            "padding alone",
            frame(DATA, 8, 1, &[&[200][..], &[0; 200]].concat()),
        ),
        ("single bytes", frame(DATA, 0, 1, b"x")),
        ("frames nobody knows", frame(0xf0, 0, 0, &[0; 100])),
        ("a stream that is reset again and again", reset(1)),
    ]
}

#[test]
fn floods_of_frames_cost_a_server_little_memory_and_its_other_tunnels_little_time() {
    for (what, flood) in floods() {
        for reads in [true, false] {
            let grown = server_grows(App::Stands, reads, open(1), many(&flood));
            assert!(
                grown < FRAMES,
                "{what}, reads: {reads}: {} KiB",
                grown / 1024
            );
        }
    }
}

#[test]
fn floods_of_frames_cost_a_client_little_memory_and_its_other_tunnels_little_time() {
    let accepted = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    let mut floods = floods();
    floods.push((
        "good-byes",
        frame(GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
    ));
    for (what, flood) in floods {
        for reads in [true, false] {
            let grown = client_grows(reads, accepted.clone(), many(&flood));
            assert!(
                grown < FRAMES,
                "{what}, reads: {reads}: {} KiB",
                grown / 1024
            );
        }
    }
}

#[test]
fn answers_that_never_become_final_cost_a_client_little() {
    // `:status: 103`, on the stream that waits for its answer.
    let early = frame(HEADERS, END_HEADERS, 1, &[8, 3, b'1', b'0', b'3']);
    for reads in [true, false] {
        let grown = client_grows(reads, Vec::new(), many(&early));
        assert!(grown < FRAMES, "reads: {reads}: {} KiB", grown / 1024);
    }
}

#[test]
fn header_blocks_without_end_cost_either_side_little() {
    let begin = frame(HEADERS, 0, 1, &connect());
    let answer = frame(HEADERS, 0, 1, &[0x88]);
    let some = frame(CONTINUATION, 0, 1, &field(b"x", &[b'y'; 100]));
    for (what, piece) in [("empty", frame(CONTINUATION, 0, 1, &[])), ("fields", some)] {
        let grown = server_grows(App::Stands, true, begin.clone(), many(&piece));
        assert!(grown < FRAMES, "server, {what}: {} KiB", grown / 1024);
        let grown = client_grows(true, answer.clone(), many(&piece));
        assert!(grown < FRAMES, "client, {what}: {} KiB", grown / 1024);
    }
}

#[test]
fn a_header_that_is_small_on_the_wire_and_large_in_memory_costs_little() {
    // A field of 3,900 bytes that goes into the table, then 15,000 references of a byte to it.
    let mut large = vec![0x40, 1, b'x', 0x7f];
    large.extend([0xbd, 0x1d]); // 127 + 3,773 = 3,900
    large.extend([b'y'; 3900]);
    let bomb = [connect(), large, vec![0xbe; 12_000]].concat();
    let grown = server_grows(App::Stands, true, Vec::new(), |n| {
        frame(HEADERS, END_HEADERS, nth(n), &bomb)
    });
    assert!(grown < FRAMES, "{} KiB", grown / 1024);
}

#[test]
fn streams_that_come_and_go_cost_a_server_little() {
    let get = [
        field(b":method", b"GET"),
        field(b":scheme", b"http"),
        field(b":authority", b"a:1"),
        field(b":path", b"/"),
    ]
    .concat();
    let upper = [connect(), field(b"UPPER", b"case")].concat();
    type Block<'a> = Box<dyn Fn(u32) -> Vec<u8> + 'a>;
    let cases: [(&str, Block<'_>); 6] = [
        (
            "opened and reset (CVE-2023-44487)",
            Box::new(|n| [open(nth(n)), reset(nth(n))].concat()),
        ),
        (
            "reset by us (CVE-2025-8671)",
            Box::new(|n| [open(nth(n)), window(nth(n), 0)].concat()),
        ),
        (
            "no CONNECT",
            Box::new(|n| frame(HEADERS, END_HEADERS | END_STREAM, nth(n), &get)),
        ),
        (
            "malformed",
            Box::new(|n| frame(HEADERS, END_HEADERS, nth(n), &upper)),
        ),
        ("never ended", Box::new(|n| open(nth(n)))),
        (
            "ended at once",
            Box::new(|n| [open(nth(n)), frame(DATA, END_STREAM, nth(n), &[])].concat()),
        ),
    ];
    for (what, block) in cases {
        for reads in [true, false] {
            let grown = server_grows(App::Stands, reads, Vec::new(), &block);
            assert!(
                grown < FRAMES,
                "{what}, reads: {reads}: {} KiB",
                grown / 1024
            );
        }
    }
}

#[test]
fn no_window_is_no_memory() {
    let none = [setting(4, 0), (0..150).flat_map(|n| open(nth(n))).collect()].concat();
    let ping = frame(PING, 0, 0, &[0; 8]);
    let grown = server_grows(App::Pours, true, none, many(&ping));
    // Each of the 150 applications has one write in hand.
    assert!(grown < FRAMES + 150 * 64 * 1024, "{} KiB", grown / 1024);
}

#[test]
fn fifteen_hundred_streams_whose_peer_reads_nothing_hold_a_bounded_part_of_memory() {
    const CONNECTIONS: usize = 10;
    const STREAMS: u32 = 150;
    let grown = alone(async |peer| {
        let attack = async {
            let mut standing = Vec::new();
            for _ in 0..CONNECTIONS {
                let (mut near, far) = tokio::io::duplex(64 * 1024);
                tokio::task::spawn_local(serve_all(far, peer.clone(), App::Pours));
                near.write_all(&[PREFACE.to_vec(), all_credit()].concat())
                    .await
                    .unwrap();
                settled(&mut near).await;
                let opens = (0..STREAMS).flat_map(|n| open(nth(n)));
                let opens: Vec<u8> = frame(SETTINGS, ACK, 0, &[])
                    .into_iter()
                    .chain(opens)
                    .collect();
                near.write_all(&opens).await.unwrap();
                standing.push(near);
            }
            tokio::time::sleep(4 * STANDS).await;
            standing
        };
        tokio::select! {
            never = neighbour(&peer) => match never {},
            standing = attack => drop(standing),
        }
    });
    // 64 KiB that each application has in hand, and what the limits of thread and stream let the
    // engine hold: 32 MiB and 16 KiB for each. Without them it would be 256 KiB for each.
    let hands = CONNECTIONS * STREAMS as usize * 64 * 1024;
    let most = hands + 64 * MIB + FRAMES;
    assert!(grown > 64 * MIB, "it came through: {} MiB", grown / MIB);
    assert!(grown < most, "{} MiB", grown / MIB);
}

/// Opens streams and sends the whole window of each. The connection stays until the answer is dropped.
async fn fill_windows(mut near: DuplexStream, streams: u32) -> tokio::io::WriteHalf<DuplexStream> {
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    near.write_all(&hello).await.unwrap();
    settled(&mut near).await;
    let opens = (0..streams).flat_map(|n| open(nth(n)));
    let opens: Vec<u8> = frame(SETTINGS, ACK, 0, &[])
        .into_iter()
        .chain(opens)
        .collect();
    near.write_all(&opens).await.unwrap();
    let (mut from, mut to) = tokio::io::split(near);
    tokio::task::spawn_local(async move {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    });
    for n in 0..streams {
        let piece = frame(DATA, 0, nth(n), &[7; 16 * 1024]);
        for _ in 0..64 {
            if to.write_all(&piece).await.is_err() {
                return to;
            }
        }
    }
    to
}

#[test]
fn fifteen_hundred_streams_whose_readers_stand_hold_a_bounded_part_of_memory() {
    const CONNECTIONS: u32 = 10;
    const STREAMS: u32 = 150;
    let grown = alone(async |peer| {
        let attack = async {
            let attacks: Vec<_> = (0..CONNECTIONS)
                .map(|_| {
                    let (near, far) = tokio::io::duplex(MIB);
                    tokio::task::spawn_local(serve_all(far, peer.clone(), App::Stands));
                    tokio::task::spawn_local(fill_windows(near, STREAMS))
                })
                .collect();
            let mut ends = Vec::new();
            for attack in attacks {
                ends.push(attack.await.unwrap());
            }
            tokio::time::sleep(STANDS).await;
        };
        tokio::select! {
            never = neighbour(&peer) => match never {},
            () = attack => {}
        }
    });
    // What a thread holds, and what each stream may hold when that is full; a window for each would
    // be 1,500 MiB.
    let most = (256 + 94) * MIB + FRAMES;
    assert!(grown > 64 * MIB, "it came through: {} MiB", grown / MIB);
    assert!(grown < most, "{} MiB", grown / MIB);
}
