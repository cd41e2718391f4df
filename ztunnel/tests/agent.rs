//! Conversations with a scripted node agent, over the real socket, with real namespaces. Needs root.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in its helpers"
)]

use std::future::Future;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ambit_net::netns::Netns;
use ambit_net::seqpacket::{SeqListener, SeqPacket};
use ambit_observe::access::AccessLog;
use ambit_observe::logging::LogFormat;
use ambit_observe::metrics::{Format, Registry};
use ambit_observe::writer::LogWriter;
use ambit_proto::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, ZdsHello, workload_request::Payload, workload_response,
};
use ambit_runtime::clock::Clock;
use ambit_runtime::drain::{Drain, drain};
use ambit_runtime::threads::DataThreads;
use ambit_ztunnel::config::env::{Machine, read};
use ambit_ztunnel::dns::Resolver;
use ambit_ztunnel::inpod::{Session, Status};
use ambit_ztunnel::metrics::Metrics;
use ambit_ztunnel::pods::Pods;
use ambit_ztunnel::worker::{Shared, Worker};
use prost::Message;

/// Longest wait for anything: a loaded machine, not the program, is what takes time here.
const BOUND: Duration = Duration::from_secs(20);

/// A fresh network namespace with its loopback up, as every pod has it.
fn namespace() -> Netns {
    let made = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        Netns::current().unwrap()
    });
    made.join().unwrap()
}

struct Proxy {
    status: Status,
    pods: Pods,
    registry: Registry,
    _stop: Drain,
    _threads: DataThreads<Worker>,
    _names: DataThreads<Resolver>,
    _folder: tempfile::TempDir,
}

/// A node proxy's agent side on two data threads, and the agent's end of its first conversation.
async fn proxy() -> (Proxy, SeqListener, Agent) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("zds.sock");
    let listener = SeqListener::bind(&socket).unwrap();
    let registry = Registry::default();
    let settings = read(std::collections::BTreeMap::new(), &Machine::default()).unwrap();
    let writer = LogWriter::start(std::io::sink()).unwrap();
    let shared = Arc::new(Shared {
        store: ambit_ztunnel::store::Store::default(),
        settings,
        metrics: Metrics::new(&registry),
        access: AccessLog::to(writer, LogFormat::Plain),
        demand: None,
        tunnels: ambit_hbone::Settings::default(),
        revocation: Arc::default(),
    });
    let for_workers = Arc::clone(&shared);
    let two = std::num::NonZeroUsize::new(2).unwrap();
    let threads = DataThreads::start("data", two, move |_| Worker::new(&for_workers)).unwrap();
    let (certificates, _renewer) = ambit_identity::Certificates::new(Clock::system());
    let (stop, draining) = drain();
    let (names, dns) = ambit_ztunnel::dns::start(&shared).unwrap();
    let pods = Pods::new(
        threads.handles().to_vec(),
        dns,
        shared,
        certificates,
        draining,
    );
    let status = Status::default();
    let session = Session::new(pods.clone(), status.clone());
    tokio::spawn(run(session, socket));
    let proxy = Proxy {
        status,
        pods,
        registry,
        _stop: stop,
        _threads: threads,
        _names: names,
        _folder: folder,
    };
    let agent = Agent::meet(&listener).await;
    (proxy, listener, agent)
}

async fn run(session: Session, socket: PathBuf) {
    match session.run(&socket).await {}
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, what).await.unwrap()
}

struct Agent(SeqPacket);

impl Agent {
    async fn meet(listener: &SeqListener) -> Self {
        let connection = within(listener.accept()).await.unwrap();
        let mut buffer = [0; 1024];
        let (length, descriptors) = within(connection.recv(&mut buffer)).await.unwrap();
        assert!(descriptors.is_empty());
        assert_eq!(ZdsHello::decode(&buffer[..length]).unwrap().version, 1);
        Self(connection)
    }

    /// Says something and returns the error of its one acknowledgement; empty is success.
    async fn say(&self, payload: Payload, descriptor: Option<BorrowedFd<'_>>) -> String {
        let request = WorkloadRequest {
            payload: Some(payload),
        };
        self.raw(&request.encode_to_vec(), descriptor).await
    }

    async fn raw(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> String {
        within(self.0.send(bytes, descriptor)).await.unwrap();
        let mut buffer = [0; 1024];
        let (length, _) = within(self.0.recv(&mut buffer)).await.unwrap();
        let response = WorkloadResponse::decode(&buffer[..length]).unwrap();
        let Some(workload_response::Payload::Ack(ack)) = response.payload else {
            unreachable!("the contract has one answer")
        };
        ack.error
    }

    async fn add(&self, uid: &str, netns: &Netns) -> String {
        self.say(added(uid), Some(netns.as_fd())).await
    }

    async fn snapshot(&self) -> String {
        self.say(Payload::SnapshotSent(SnapshotSent {}), None).await
    }

    async fn keep(&self, uid: &str) -> String {
        self.say(kept(uid), None).await
    }

    async fn del(&self, uid: &str) -> String {
        self.say(deleted(uid), None).await
    }

    async fn ended(&self) {
        let mut buffer = [0; 1024];
        let ended = within(self.0.recv(&mut buffer)).await;
        assert!(matches!(ended, Ok((0, _)) | Err(_)), "{ended:?}");
    }
}

fn added(uid: &str) -> Payload {
    Payload::Add(AddWorkload {
        uid: uid.to_owned(),
        workload_info: Some(WorkloadInfo {
            name: uid.to_owned(),
            namespace: "shop".to_owned(),
            service_account: "sa".to_owned(),
        }),
    })
}

fn kept(uid: &str) -> Payload {
    Payload::Keep(KeepWorkload {
        uid: uid.to_owned(),
    })
}

fn deleted(uid: &str) -> Payload {
    Payload::Del(DelWorkload {
        uid: uid.to_owned(),
    })
}

/// One of the numbers of `workload_manager`.
fn counted(proxy: &Proxy, what: &str) -> u64 {
    let text = proxy.registry.render(Format::Text);
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let found = lines.find_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        (name.starts_with("workload_manager") && name.ends_with(what)).then_some(value)
    });
    found.unwrap_or("0").parse().unwrap()
}

fn listens(netns: &Netns, port: u16) -> bool {
    let bound = netns.run(|| TcpListener::bind(("0.0.0.0", port))).unwrap();
    bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

fn listens_on_all(netns: &Netns) -> bool {
    [15001, 15006, 15008]
        .into_iter()
        .all(|port| listens(netns, port))
}

fn uids(proxy: &Proxy) -> Vec<String> {
    proxy
        .pods
        .running()
        .into_iter()
        .map(|pod| pod.uid)
        .collect()
}

async fn eventually(what: impl Fn() -> bool) {
    within(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn serves_the_pods_of_a_snapshot_and_is_then_ready() {
    let (proxy, _listener, agent) = proxy().await;
    let (one, two) = (namespace(), namespace());
    assert_eq!(agent.add("one", &one).await, "");
    assert!(listens_on_all(&one), "acknowledged means that it listens");
    assert!(!proxy.status.ready());
    assert_eq!(agent.add("two", &two).await, "");
    assert_eq!(
        agent
            .say(Payload::SnapshotSent(SnapshotSent {}), None)
            .await,
        ""
    );
    assert!(proxy.status.ready());
    assert_eq!(uids(&proxy), ["one", "two"]);
    let text = proxy.registry.render(Format::Text);
    assert!(
        text.contains("workload_manager_active_proxy_count 2"),
        "{text}"
    );
    assert!(
        text.contains("workload_manager_proxies_started_total 2"),
        "{text}"
    );

    let del = Payload::Del(DelWorkload {
        uid: "one".to_owned(),
    });
    assert_eq!(agent.say(del, None).await, "");
    assert_eq!(uids(&proxy), ["two"]);
    eventually(|| !listens(&one, 15008)).await;
}

#[tokio::test]
async fn goes_on_serving_while_the_agent_is_away_and_drops_what_a_new_snapshot_leaves_out() {
    let (proxy, listener, agent) = proxy().await;
    let (one, two) = (namespace(), namespace());
    agent.add("one", &one).await;
    agent.add("two", &two).await;
    agent
        .say(Payload::SnapshotSent(SnapshotSent {}), None)
        .await;
    drop(agent);
    eventually(|| !proxy.status.ready()).await;
    assert!(listens_on_all(&one) && listens_on_all(&two));

    let agent = Agent::meet(&listener).await;
    let keep = Payload::Keep(KeepWorkload {
        uid: "one".to_owned(),
    });
    assert_eq!(agent.say(keep, None).await, "");
    assert_eq!(uids(&proxy), ["one", "two"]);
    assert_eq!(
        agent
            .say(Payload::SnapshotSent(SnapshotSent {}), None)
            .await,
        ""
    );
    assert_eq!(uids(&proxy), ["one"]);
    assert!(proxy.status.ready());
}

#[tokio::test]
async fn a_pod_whose_ports_are_taken_is_refused_and_tried_again() {
    let (proxy, _listener, agent) = proxy().await;
    let netns = namespace();
    let taken = netns
        .run(|| TcpListener::bind("0.0.0.0:15006"))
        .unwrap()
        .unwrap();
    let error = agent.add("one", &netns).await;
    assert!(
        error.contains("shop/one") && error.contains("in use"),
        "{error}"
    );
    assert!(!listens(&netns, 15008), "nothing of it is left behind");
    agent
        .say(Payload::SnapshotSent(SnapshotSent {}), None)
        .await;
    assert!(!proxy.status.ready());
    assert_eq!(proxy.status.pending().len(), 1);
    drop(taken);
    eventually(|| proxy.status.ready()).await;
    assert!(listens_on_all(&netns));
}

#[tokio::test]
async fn answers_what_breaks_the_contract_or_its_order_and_starts_anew() {
    let (proxy, listener, mut agent) = proxy().await;
    let netns = namespace();
    let file = tempfile::tempfile().unwrap();
    let keep = || kept("x");
    let unnamed = Payload::Add(AddWorkload {
        uid: "x".to_owned(),
        workload_info: None,
    });
    let bytes = |payload| {
        let request = WorkloadRequest {
            payload: Some(payload),
        };
        request.encode_to_vec()
    };
    let broken: [(&[u8], Option<BorrowedFd<'_>>); 8] = [
        (&bytes(unnamed), Some(netns.as_fd())),
        (&bytes(deleted("x")), Some(netns.as_fd())),
        (
            &bytes(Payload::SnapshotSent(SnapshotSent {})),
            Some(netns.as_fd()),
        ),
        (b"\xff\xff\xff", None),
        // A field that nobody knows, and none that somebody does.
        (b"\x78\x01", None),
        (
            &WorkloadRequest {
                payload: Some(added("x")),
            }
            .encode_to_vec(),
            None,
        ),
        (
            &WorkloadRequest {
                payload: Some(added("x")),
            }
            .encode_to_vec(),
            Some(file.as_fd()),
        ),
        (
            &WorkloadRequest {
                payload: Some(keep()),
            }
            .encode_to_vec(),
            Some(netns.as_fd()),
        ),
    ];
    for (bytes, descriptor) in broken {
        assert_ne!(agent.raw(bytes, descriptor).await, "", "{bytes:?}");
        agent.ended().await;
        agent = Agent::meet(&listener).await;
    }
    for late in [keep(), Payload::SnapshotSent(SnapshotSent {})] {
        assert_eq!(agent.snapshot().await, "");
        assert_ne!(agent.say(late, None).await, "", "after the snapshot");
        agent.ended().await;
        agent = Agent::meet(&listener).await;
    }
    assert_eq!(agent.add("one", &netns).await, "");
    assert_eq!(uids(&proxy), ["one"]);
}

#[tokio::test]
async fn an_agent_that_hangs_up_at_once_is_dialled_again_with_pauses() {
    let (_proxy, listener, agent) = proxy().await;
    drop(agent);
    let start = tokio::time::Instant::now();
    let mut times = Vec::new();
    while times.len() < 8 {
        drop(within(listener.accept()).await.unwrap());
        times.push(start.elapsed());
    }
    // Ten milliseconds at first, then twice as long each time, less a fifth at most.
    assert!(times[7] > Duration::from_millis(300), "{times:?}");
    Agent::meet(&listener).await;
}

#[tokio::test]
async fn a_pod_is_added_deleted_and_added_again() {
    let (proxy, _listener, agent) = proxy().await;
    let netns = namespace();
    assert_eq!(agent.snapshot().await, "");
    for round in 1..=2 {
        assert_eq!(agent.add("one", &netns).await, "");
        assert!(listens_on_all(&netns));
        assert_eq!(counted(&proxy, "started_total"), round);
        assert_eq!(agent.del("one").await, "");
        eventually(|| !listens(&netns, 15008)).await;
        assert_eq!(counted(&proxy, "active_proxy_count"), 0);
    }
    assert_eq!(agent.del("one").await, "", "nobody of that uid");
}

#[tokio::test]
async fn a_pod_deleted_before_the_snapshot_ends_with_it_and_is_not_waited_for() {
    let (proxy, listener, agent) = proxy().await;
    let (one, two) = (namespace(), namespace());
    assert_eq!(agent.add("one", &one).await, "");
    assert_eq!(agent.snapshot().await, "");
    drop(agent);
    let agent = Agent::meet(&listener).await;
    assert_eq!(agent.keep("one").await, "");
    assert_eq!(agent.del("one").await, "");
    let _taken = two.run(|| TcpListener::bind("0.0.0.0:15001")).unwrap();
    assert_ne!(agent.add("two", &two).await, "");
    assert_eq!(agent.del("two").await, "");
    assert_eq!(uids(&proxy), ["one"], "until all are named");
    assert_eq!(agent.snapshot().await, "");
    assert_eq!(uids(&proxy), [""; 0]);
    assert!(proxy.status.pending().is_empty() && proxy.status.ready());
}

#[tokio::test]
async fn a_pod_that_is_kept_is_not_started_again() {
    let (proxy, listener, agent) = proxy().await;
    let netns = namespace();
    assert_eq!(agent.add("one", &netns).await, "");
    assert_eq!(agent.snapshot().await, "");
    drop(agent);
    let agent = Agent::meet(&listener).await;
    assert_eq!(agent.keep("one").await, "");
    assert_eq!(agent.snapshot().await, "");
    assert_eq!(uids(&proxy), ["one"]);
    assert_eq!(counted(&proxy, "started_total"), 1);
    assert_eq!(counted(&proxy, "stopped_total"), 0);
}

#[tokio::test]
async fn a_pod_that_waits_is_served_in_the_namespace_it_was_added_with_last() {
    let (proxy, _listener, agent) = proxy().await;
    let (old, new) = (namespace(), namespace());
    let taken = old.run(|| TcpListener::bind("0.0.0.0:15008")).unwrap();
    assert_eq!(agent.snapshot().await, "");
    assert_ne!(agent.add("one", &old).await, "");
    assert_eq!(proxy.status.pending().len(), 1);
    assert_eq!(agent.add("one", &new).await, "");
    assert!(proxy.status.pending().is_empty());
    drop(taken);
    // Nothing tries the old one again.
    tokio::time::sleep(Duration::from_millis(5500)).await;
    assert!(listens_on_all(&new) && !listens(&old, 15008));
    assert_eq!(uids(&proxy), ["one"]);
}

#[tokio::test]
async fn an_agent_that_never_pauses_keeps_no_pod_waiting() {
    let (proxy, _listener, agent) = proxy().await;
    let (waiting, other) = (namespace(), namespace());
    let taken = waiting.run(|| TcpListener::bind("0.0.0.0:15008")).unwrap();
    assert_eq!(agent.snapshot().await, "");
    assert_ne!(agent.add("waiting", &waiting).await, "");
    drop(taken);
    within(async {
        while !proxy.status.pending().is_empty() {
            assert_eq!(agent.add("other", &other).await, "");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(listens_on_all(&waiting));
}

#[tokio::test]
async fn a_pod_in_a_new_namespace_is_served_there() {
    let (proxy, _listener, agent) = proxy().await;
    let (old, new) = (namespace(), namespace());
    assert_eq!(agent.add("one", &old).await, "");
    assert_eq!(agent.add("one", &old).await, "", "again changes nothing");
    assert_eq!(agent.add("one", &new).await, "");
    assert!(listens_on_all(&new));
    eventually(|| !listens(&old, 15008)).await;
    assert_eq!(uids(&proxy), ["one"]);
    assert_eq!(counted(&proxy, "started_total"), 2);
    assert_eq!(counted(&proxy, "active_proxy_count"), 1);
}
