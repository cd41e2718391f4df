//! A scripted node proxy at the other end of the socket. Needs root, for network namespaces.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ambit_net::netns::{Netns, NetnsId};
use ambit_net::seqpacket::SeqPacket;
use ambit_proto::zds::workload_request::Payload;
use ambit_proto::zds::{Ack, WorkloadRequest, WorkloadResponse, ZdsHello, workload_response};
use prost::Message;
use tokio::time::timeout;

use super::{Hub, Identity, NotServed};
use crate::namespace::{Claims, PodNetns};

const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    hub: Hub,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zds.sock");
    let hub = Hub::default();
    tokio::spawn(hub.clone().listen(&path).unwrap());
    World {
        hub,
        path,
        _folder: folder,
    }
}

/// A namespace of its own, with the loopback address as the pod's.
fn namespace(claims: &Arc<Claims>, uid: &str) -> Arc<PodNetns> {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let output = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(output.unwrap().success());
        let netns = Netns::current().unwrap();
        let id = nix::unistd::gettid();
        (netns, PathBuf::from(format!("/proc/self/task/{id}/ns/net")))
    });
    let (netns, _path) = thread.join().unwrap();
    // The thread is gone; its namespace lives in the descriptor.
    use std::os::fd::{AsFd, AsRawFd};
    let path = format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
    let owned = PodNetns::open(claims, uid, path.as_ref(), &["127.0.0.1".parse().unwrap()]);
    Arc::new(owned.unwrap())
}

fn identity(name: &str) -> Identity {
    Identity {
        name: name.into(),
        namespace: "shop".into(),
        service_account: "sa".into(),
    }
}

struct Proxy(SeqPacket);

impl Proxy {
    async fn connect(world: &World) -> Self {
        let packet = SeqPacket::connect(&world.path).unwrap();
        packet
            .send(&ZdsHello { version: 1 }.encode_to_vec(), None)
            .await
            .unwrap();
        Self(packet)
    }

    async fn next(&self) -> (Payload, Vec<OwnedFd>) {
        let mut buffer = [0; 1024];
        let (length, descriptors) = timeout(PATIENCE, self.0.recv(&mut buffer))
            .await
            .expect("no message")
            .unwrap();
        assert_ne!(length, 0, "the agent closed the connection");
        let request = WorkloadRequest::decode(&buffer[..length]).unwrap();
        (request.payload.unwrap(), descriptors)
    }

    async fn answer(&self, error: &str) {
        let ack = Ack {
            error: error.to_owned(),
        };
        let response = WorkloadResponse {
            payload: Some(workload_response::Payload::Ack(ack)),
        };
        self.0.send(&response.encode_to_vec(), None).await.unwrap();
    }

    async fn expect_add(&self, uid: &str) -> NetnsId {
        let (payload, mut descriptors) = self.next().await;
        let Payload::Add(add) = payload else {
            panic!("{payload:?}")
        };
        assert_eq!(add.uid, uid);
        assert_eq!(add.workload_info.unwrap().service_account, "sa");
        assert_eq!(descriptors.len(), 1);
        Netns::from_fd(descriptors.remove(0)).unwrap().id()
    }

    async fn expect(&self, expected: &str) {
        let (payload, descriptors) = self.next().await;
        let found = match payload {
            Payload::Add(add) => format!("add {}", add.uid),
            Payload::Keep(keep) => format!("keep {}", keep.uid),
            Payload::Del(del) => format!("del {}", del.uid),
            Payload::SnapshotSent(_) => "snapshot sent".to_owned(),
        };
        assert_eq!(found, expected);
        assert_eq!(descriptors.len(), usize::from(expected.starts_with("add")));
        self.answer("").await;
    }

    async fn is_closed(&self) -> bool {
        let mut buffer = [0; 1024];
        matches!(
            timeout(PATIENCE, self.0.recv(&mut buffer)).await,
            Ok(Ok((0, _)) | Err(_))
        )
    }

    /// That nothing more comes; bounded by time because nothing marks the absence of a message.
    async fn is_silent(&self) -> bool {
        let mut buffer = [0; 1024];
        timeout(Duration::from_millis(200), self.0.recv(&mut buffer))
            .await
            .is_err()
    }
}

#[tokio::test]
async fn a_proxy_hears_every_pod_then_the_end_of_the_snapshot_then_changes() {
    let world = world();
    let claims = Arc::new(Claims::default());
    let (one, two) = (namespace(&claims, "u1"), namespace(&claims, "u2"));
    world.hub.put("u1", &identity("one"), &one);
    world.hub.expect("u0", &identity("zero"));
    let proxy = Proxy::connect(&world).await;
    proxy.expect("keep u0").await;
    assert_eq!(proxy.expect_add("u1").await, one.id());
    assert!(proxy.is_silent().await, "one message is outstanding");
    proxy.answer("").await;
    proxy.expect("snapshot sent").await;

    let hub = world.hub.clone();
    let served = tokio::spawn(async move { hub.serve("u2", &identity("two"), &two).await });
    proxy.expect("add u2").await;
    assert_eq!(served.await.unwrap(), Ok(()));

    let hub = world.hub.clone();
    let released = tokio::spawn(async move { hub.release("u1").await });
    proxy.expect("del u1").await;
    released.await.unwrap();
    assert_eq!(world.hub.served("u1"), None);
}

#[tokio::test]
async fn without_a_proxy_nothing_is_served_and_releasing_is_success() {
    let world = world();
    let claims = Arc::new(Claims::default());
    let netns = namespace(&claims, "u1");
    let result = world.hub.serve("u1", &identity("one"), &netns).await;
    assert_eq!(result, Err(NotServed::NoProxy));
    world.hub.release("u1").await;
}

#[tokio::test]
async fn a_refusal_is_told_and_asking_again_reaches_the_proxy_again() {
    let world = world();
    let claims = Arc::new(Claims::default());
    let netns = namespace(&claims, "u1");
    let proxy = Proxy::connect(&world).await;
    proxy.expect("snapshot sent").await;
    for error in ["no port", ""] {
        let (hub, netns) = (world.hub.clone(), Arc::clone(&netns));
        let serve = tokio::spawn(async move { hub.serve("u1", &identity("one"), &netns).await });
        proxy.expect_add("u1").await;
        proxy.answer(error).await;
        let expected = if error.is_empty() {
            Ok(())
        } else {
            Err(NotServed::Refused(error.to_owned()))
        };
        assert_eq!(serve.await.unwrap(), expected);
    }
}

#[tokio::test]
async fn adds_go_to_the_newest_proxy_and_deletes_to_all() {
    let world = world();
    let claims = Arc::new(Claims::default());
    let old = Proxy::connect(&world).await;
    old.expect("snapshot sent").await;
    world
        .hub
        .put("u1", &identity("one"), &namespace(&claims, "u1"));
    old.expect("add u1").await;
    let new = Proxy::connect(&world).await;
    new.expect("add u1").await;
    new.expect("snapshot sent").await;
    world
        .hub
        .put("u2", &identity("two"), &namespace(&claims, "u2"));
    new.expect("add u2").await;
    assert!(old.is_silent().await);
    let hub = world.hub.clone();
    let released = tokio::spawn(async move { hub.release("u1").await });
    old.expect("del u1").await;
    new.expect("del u1").await;
    released.await.unwrap();
    // The newest goes: the one before it is told what it missed.
    drop(new);
    old.expect("add u2").await;
}

#[tokio::test]
async fn a_proxy_that_speaks_out_of_turn_or_another_version_is_sent_away() {
    let world = world();
    let proxy = Proxy::connect(&world).await;
    proxy.expect("snapshot sent").await;
    proxy.answer("").await;
    assert!(proxy.is_closed().await);

    let other = SeqPacket::connect(&world.path).unwrap();
    other
        .send(&ZdsHello { version: 7 }.encode_to_vec(), None)
        .await
        .unwrap();
    assert!(Proxy(other).is_closed().await);
    let garbage = SeqPacket::connect(&world.path).unwrap();
    garbage.send(&[0xff; 100], None).await.unwrap();
    assert!(Proxy(garbage).is_closed().await);
}

#[tokio::test]
async fn the_same_namespace_is_never_given_to_two_pods() {
    let claims = Arc::new(Claims::default());
    let one = namespace(&claims, "u1");
    use std::os::fd::{AsFd, AsRawFd};
    let path = format!("/proc/self/fd/{}", one.netns().as_fd().as_raw_fd());
    let address = ["127.0.0.1".parse().unwrap()];
    let open = |uid: &str| PodNetns::open(&claims, uid, path.as_ref(), &address);
    assert!(open("u2").unwrap_err().to_string().contains("u1 already"));
    drop(one);
}
