//! Bulk between two TCP connections is moved by the kernel, from socket to pipe to socket: seen from outside of the proxy, in its
//! descriptors. All else is as when it is copied.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ambit_tests::apps::App;
use ambit_tests::apps::bytes::{Noise, Sum, expected};
use ambit_tests::expect::eventually;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::world::{CHANGE, Shared, World, started};
use memchr::memmem;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::AsyncReadExt;

const PROXY: &str = "ztunnel-n1";
/// More than all buffers on the way take: the way is full before this is sent.
const LENGTH: u64 = 32 << 20;
/// What the server reads before it stands still for a while.
const FIRST: u64 = 4 << 20;
/// What it reads at a time then, until bytes are where they are looked for.
const STEP: u64 = 128 << 10;
const PIECE: usize = 256 * 1024;
/// The longest that one write or read may take: longer than a server is made to stand still.
const PATIENCE: Duration = Duration::from_secs(60);

static WORLD: Shared = Shared::new(|| {
    let plan = Plan::new("spl")
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod("mesh/client", 1)
        .pod("mesh/near", 1)
        .pod("outside/plain", 1);
    // What a stop does to live connections is waited for.
    let deadline = format!("{}s", DEADLINE.as_secs());
    started(plan.setting("CONNECTION_TERMINATION_DEADLINE", &deadline))
});
const DEADLINE: Duration = Duration::from_secs(2);

/// A server that reads as far as it is told to, and how far it came.
#[derive(Default)]
struct Reader {
    allowed: AtomicU64,
    taken: AtomicU64,
    /// Sum and length at the end, or how the connection broke.
    end: Mutex<Option<Result<(u64, u64), ErrorKind>>>,
}

impl Reader {
    fn serve(pod: &Pod, port: u16) -> (Arc<Self>, App) {
        let reader = Arc::new(Self::default());
        reader.allowed.store(FIRST, Ordering::Relaxed);
        let serving = Arc::clone(&reader);
        let app = pod.serve(port, move |stream, _| {
            let reader = Arc::clone(&serving);
            async move {
                let end = reader.read(stream).await;
                *reader.end.lock() = Some(end.map_err(|error| error.kind()));
                Ok(())
            }
        });
        (reader, app)
    }

    async fn read(&self, mut stream: tokio::net::TcpStream) -> io::Result<(u64, u64)> {
        let (mut sum, mut piece) = (Sum::default(), vec![0; PIECE]);
        loop {
            let left = self.allowed.load(Ordering::Relaxed) - self.taken();
            if left == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            let room = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            let length = stream.read(&mut piece[..room]).await?;
            if length == 0 {
                return Ok(sum.end());
            }
            sum.add(&piece[..length]);
            self.taken.fetch_add(length as u64, Ordering::Relaxed);
        }
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn allow_all(&self) {
        self.allowed.store(u64::MAX, Ordering::Relaxed);
    }

    /// Reads a step further, if it came as far as it may.
    fn step(&self) {
        let taken = self.taken();
        if taken == self.allowed.load(Ordering::Relaxed) {
            self.allowed.store(taken + STEP, Ordering::Relaxed);
        }
    }

    fn wait_end(&self) -> Result<(u64, u64), ErrorKind> {
        eventually(CHANGE, "the server's end", || {
            self.end.lock().ok_or("none yet")
        })
    }
}

/// Sends a seed's noise in a thread of its own: how many bytes went, or how the connection broke.
fn send(stream: TcpStream, seed: u64, length: u64) -> JoinHandle<Result<u64, ErrorKind>> {
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::spawn(move || write(stream, seed, length).map_err(|error| error.kind()))
}

fn write(mut stream: TcpStream, seed: u64, length: u64) -> io::Result<u64> {
    let (mut noise, mut piece, mut sent) = (Noise::new(seed), vec![0; PIECE], 0);
    while sent < length {
        noise.fill(&mut piece);
        stream.write_all(&piece)?;
        sent += PIECE as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    // The server's end: nothing is read, and no reset.
    assert_eq!(stream.read(&mut [0])?, 0);
    Ok(sent)
}

/// The pipes that the proxy has made, each by one of its descriptors.
fn pipes(world: &World) -> Vec<PathBuf> {
    let process = world.programs().process(PROXY).expect("a running proxy");
    let mut made = pipes_of(&format!("/proc/{process}/fd"));
    // What it was started with it has from here.
    for inherited in pipes_of("/proc/self/fd").into_keys() {
        made.remove(&inherited);
    }
    made.into_values().collect()
}

/// By what tells one pipe from another.
fn pipes_of(folder: &str) -> BTreeMap<String, PathBuf> {
    let descriptors = fs::read_dir(folder).expect("a process's descriptors");
    let named = descriptors.flatten().filter_map(|entry| {
        let what = fs::read_link(entry.path()).ok()?;
        let what = what.to_str()?.to_owned();
        what.starts_with("pipe:").then(|| (what, entry.path()))
    });
    named.collect()
}

/// What is in a pipe of another process, which keeps it: the kernel makes a second reference to the same pages (tee(2)).
fn held(pipe: &Path) -> Vec<u8> {
    let room = 1 << 20;
    let mut options = File::options();
    let opened = options
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(pipe);
    // It may be gone by now.
    let Ok(opened) = opened else {
        return Vec::new();
    };
    let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(room)).expect("a large pipe");
    let most = usize::try_from(room).expect("a size");
    let length = tee(&opened, &into, most, SpliceFFlags::SPLICE_F_NONBLOCK).unwrap_or(0);
    let mut bytes = vec![0; length];
    File::from(out)
        .read_exact(&mut bytes)
        .expect("what was put in");
    bytes
}

/// Waits until bytes stand still in a pipe of the proxy's, and returns them. The server goes on in steps until then: once the way is
/// full, what the proxy reads is large, and so bulk.
fn bytes_in_a_pipe(world: &World, reader: &Reader) -> Vec<u8> {
    eventually(CHANGE, "bytes in a pipe of the proxy's", || {
        if reader.taken() < FIRST {
            return Err(vec![0]);
        }
        let held: Vec<_> = pipes(world).iter().map(|pipe| held(pipe)).collect();
        let lengths: Vec<_> = held.iter().map(Vec::len).collect();
        reader.step();
        let found = held.into_iter().find(|bytes| bytes.len() >= 32);
        found.ok_or(lengths)
    })
}

/// Checks that bytes are the noise's, at some place behind what was read first.
fn are_of(found: &[u8], seed: u64) {
    let mut all = vec![0; usize::try_from(LENGTH).unwrap()];
    Noise::new(seed).fill(&mut all);
    let first = usize::try_from(FIRST).unwrap();
    let behind = memmem::find(&all[first..], &found[..32]).expect("they are of this transfer");
    let there = &all[first + behind..][..found.len()];
    assert!(there == found, "they are in order");
}

/// A transfer from a pod to a port of another. In its middle the server stands still until `meanwhile` returns. Every byte arrives.
fn transfer(world: &World, from: &str, to: &str, port: u16, meanwhile: impl FnOnce(&Reader)) {
    let seed = u64::from(port);
    let (reader, _app) = Reader::serve(world.pod(to), port);
    let stream = world.pod(from).connect(&format!("{to}:{port}")).unwrap();
    let sending = send(stream, seed, LENGTH);
    meanwhile(&reader);
    reader.allow_all();
    assert_eq!(sending.join().unwrap(), Ok(LENGTH));
    assert_eq!(reader.wait_end(), Ok(expected(seed, LENGTH)));
}

/// Ways that lead from one TCP connection to another: between two pods of the node, in plaintext to a pod of the mesh, and from it.
const WAYS: [(&str, &str, &[&str]); 3] = [
    ("mesh/client", "mesh/near", &["outbound", "inbound"]),
    ("outside/plain", "mesh/near", &["inbound"]),
    ("mesh/client", "outside/plain", &["outbound"]),
];

/// The record of a transfer, of each end that there is, counts each byte once.
fn counted(world: &World, port: u16, directions: &[&str]) {
    let (length, address) = (LENGTH.to_string(), format!("*:{port}"));
    // A tunnel's address is its port 15008.
    let key = match directions.len() {
        2 => "dst.hbone_addr",
        _ => "dst.addr",
    };
    for direction in directions {
        let (sent, received) = match *direction {
            "outbound" => (length.as_str(), "0"),
            _ => ("0", length.as_str()),
        };
        let fields = [
            ("direction", *direction),
            (key, address.as_str()),
            ("bytes_sent", sent),
            ("bytes_recv", received),
            ("error", ""),
        ];
        let found = world.wait_records(PROXY, &fields, 1);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

/// Bytes from `mesh/client` to `mesh/near` by the metrics of both ends.
fn metered(world: &World) -> [f64; 2] {
    let metrics = world.metrics(PROXY);
    ["source", "destination"].map(|reporter| {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client"),
            ("destination_workload", "near"),
        ];
        metrics.sum("istio_tcp_received_bytes_total", &labels)
    })
}

#[test]
fn the_kernel_moves_bulk_within_a_node_and_in_plaintext() {
    let world = WORLD.alone();
    assert!(!pipes(&world).iter().any(|pipe| !held(pipe).is_empty()));
    for (index, (from, to, directions)) in WAYS.into_iter().enumerate() {
        let port = 9701 + u16::try_from(index).unwrap();
        let before = metered(&world);
        transfer(&world, from, to, port, |reader| {
            are_of(&bytes_in_a_pipe(&world, reader), u64::from(port));
        });
        counted(&world, port, directions);
        if directions.len() == 2 {
            let more = [0, 1].map(|end| metered(&world)[end] - before[end]);
            assert_eq!(more, [LENGTH as f64; 2], "received by {PROXY}");
        }
        nothing_held(&world);
    }
}

/// No pipe of the proxy's holds a byte of a connection that is over.
fn nothing_held(world: &World) {
    eventually(CHANGE, "pipes are empty", || {
        let held: Vec<_> = pipes(world).iter().map(|pipe| held(pipe).len()).collect();
        held.iter()
            .all(|length| *length == 0)
            .then_some(())
            .ok_or(held)
    });
}

/// Starts the proxy anew with this setting.
fn spliced(world: &World, enabled: &str) {
    world.programs().set(PROXY, "SPLICE_ENABLED", enabled);
    world.kill(PROXY);
    world.start_again(PROXY);
    world.wait_enrolled();
}

#[test]
fn the_switch_has_every_byte_copied() {
    let world = WORLD.alone();
    spliced(&world, "false");
    for (index, (from, to, directions)) in WAYS.into_iter().enumerate() {
        let port = 9711 + u16::try_from(index).unwrap();
        transfer(&world, from, to, port, |reader| {
            world.eventually("the server stands still", || reader.taken() == FIRST);
            assert_eq!(pipes(&world), Vec::<PathBuf>::new(), "{from} to {to}");
        });
        counted(&world, port, directions);
    }
    // Pipes that were used would be kept for the next takers.
    assert_eq!(pipes(&world), Vec::<PathBuf>::new());
    spliced(&world, "true");
}

/// Bulk from `mesh/client` to `mesh/near` that has no end, and of which a part stands in a pipe.
struct Endless {
    reader: Arc<Reader>,
    sending: JoinHandle<Result<u64, ErrorKind>>,
    _app: App,
}

fn endless(world: &World, port: u16) -> Endless {
    /// More than a test has time for.
    const MOST: u64 = 64 << 30;
    let (reader, app) = Reader::serve(world.pod("mesh/near"), port);
    let to = format!("mesh/near:{port}");
    let stream = world.pod("mesh/client").connect(&to).unwrap();
    let sending = send(stream, 1, MOST);
    bytes_in_a_pipe(world, &reader);
    Endless {
        reader,
        sending,
        _app: app,
    }
}

impl Endless {
    /// Waits until both applications have seen a reset and no end, and returns what the server had read.
    fn broken(self) -> u64 {
        self.reader.allow_all();
        assert_eq!(self.reader.wait_end(), Err(ErrorKind::ConnectionReset));
        let client = self.sending.join().unwrap().unwrap_err();
        // The second write after a reset, where the first one met it.
        let broken = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(broken.contains(&client), "{client}");
        self.reader.taken()
    }
}

#[test]
fn a_policy_ends_bulk_in_its_middle() {
    let world = WORLD.alone();
    let bulk = endless(&world, 9721);
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "case", "namespace": "mesh"},
        "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["9721"]}}]}]},
    });
    let _applied = world.apply_for_now("case", &policy.to_string());
    nothing_held(&world);
    let read = bulk.broken();
    let ends = |direction, error| {
        [
            ("direction", direction),
            ("dst.hbone_addr", "*:9721"),
            ("error", error),
        ]
    };
    let changed = "*connection closed due to policy change";
    let inbound = world.wait_records(PROXY, &ends("inbound", changed), 1);
    let reset = "connection reset by the far side";
    let outbound = world.wait_records(PROXY, &ends("outbound", reset), 1);
    let counted = inbound[0].get("bytes_recv").parse::<u64>().unwrap();
    assert!(counted >= read, "{counted} counted, {read} arrived");
    assert_eq!(outbound[0].get("bytes_sent"), counted.to_string());
}

#[test]
fn a_proxy_that_stops_ends_bulk_when_its_time_is_over() {
    let world = WORLD.alone();
    let bulk = endless(&world, 9731);
    bulk.reader.allow_all();
    let begin = Instant::now();
    let ended = world.programs().end(PROXY, Signal::SIGTERM, CHANGE);
    assert!(ended.success(), "{ended:?}");
    assert!(begin.elapsed() >= DEADLINE, "it had its time");
    bulk.broken();
    for direction in ["outbound", "inbound"] {
        let fields = [("direction", direction), ("dst.hbone_addr", "*:9731")];
        let found = world.wait_records(PROXY, &fields, 1);
        assert_eq!(found.len(), 1, "{found:?}");
    }
    world.start_again(PROXY);
    world.wait_enrolled();
}

#[test]
fn a_proxy_that_is_killed_ends_bulk_and_the_next_one_moves_it_again() {
    let world = WORLD.alone();
    let bulk = endless(&world, 9741);
    world.kill(PROXY);
    bulk.broken();
    world.start_again(PROXY);
    world.wait_enrolled();
    transfer(&world, "mesh/client", "mesh/near", 9742, |reader| {
        are_of(&bytes_in_a_pipe(&world, reader), 9742);
    });
    nothing_held(&world);
}
