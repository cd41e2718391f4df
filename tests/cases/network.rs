//! The world itself, without a mesh: cables, services, captures, and that nothing stays behind.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use ambit_tests::plan::Plan;
use ambit_tests::pod::Family;
use ambit_tests::world::{Shared, World, started};
use bytes::Bytes;
use http::{Method, StatusCode, Version};

/// Two pods on one node, two on the other, one service in front of two of them.
fn plan(name: &str) -> Plan {
    Plan::new(name)
        .without_mesh()
        .namespace("shop", &[])
        .pod("shop/client", 1)
        .pod("shop/near", 1)
        .pod("shop/far", 2)
        .pod_with("shop/twin", 2, |pod| pod.label("app", "far"))
        .service("shop/far", "far", &[("tcp", 80, 8080)])
}

static WORLD: Shared = Shared::new(|| started(plan("net")));

#[test]
fn pods_reach_each_other_over_both_families_and_are_seen_by_their_own_address() {
    let world = WORLD.with_others();
    let (client, near, far) = (
        world.pod("shop/client"),
        world.pod("shop/near"),
        world.pod("shop/far"),
    );
    for server in [near, far] {
        let app = server.serve_whoami(7001);
        let to = format!("{}:7001", server.path());
        for (family, own) in [
            (Family::V4, IpAddr::from(client.ipv4())),
            (Family::V6, client.ipv6().into()),
        ] {
            let answer = client.ask_over(&to, family, b"").unwrap();
            assert_eq!(String::from_utf8(answer).unwrap(), own.to_string());
        }
        assert_eq!(app.seen().count(), 2);
    }
}

#[test]
fn a_service_spreads_connections_over_the_pods_behind_it() {
    let world = WORLD.with_others();
    let apps = ["shop/far", "shop/twin"].map(|pod| world.pod(pod).serve_echo(8080));
    let client = world.pod("shop/client");
    for _ in 0..60 {
        assert!(client.reaches("far.shop:80"));
    }
    let counts = apps.each_ref().map(|app| app.seen().count());
    assert_eq!(counts[0] + counts[1], 60);
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
}

#[test]
fn a_capture_between_the_nodes_sees_what_is_sent_in_plaintext() {
    let world = WORLD.with_others();
    let _app = world.pod("shop/far").serve_echo(7002);
    let client = world.pod("shop/client");
    let capture = world.capture();
    client.ask("shop/far:7002", b"MARKER-4111-1111").unwrap();
    let packets = capture.end();
    assert!(
        packets.with("MARKER-4111-1111") > 0,
        "{} packets",
        packets.count()
    );
    assert!(packets.to_port(7002) > 0);
    assert_eq!(packets.with("MARKER-never-sent"), 0);
}

#[test]
fn http_clients_and_servers_speak_both_versions() {
    let world = WORLD.with_others();
    let _app = world.pod("shop/near").serve_http(7003, "near");
    let client = world.pod("shop/client");
    for (version, told) in [
        (Version::HTTP_11, "HTTP/1.1"),
        (Version::HTTP_2, "HTTP/2.0"),
    ] {
        let mut connection = client.http("shop/near:7003", version).unwrap();
        for _ in 0..3 {
            let answer = connection
                .send(Method::POST, "/cart?item=7", &[("x-test", "yes")], "body")
                .unwrap();
            let told_back = answer.json();
            assert_eq!(told_back["name"], "near");
            assert_eq!(told_back["version"], told);
            assert_eq!(told_back["path"], "/cart");
            assert_eq!(told_back["headers"]["x-test"], "yes");
            assert_eq!(told_back["body"], 4);
        }
        let answer = connection
            .send(Method::GET, "/status/503", &[], Bytes::new())
            .unwrap();
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    let mut call = client.http("shop/near:7003", Version::HTTP_2).unwrap();
    let answer = call
        .send(
            Method::POST,
            "/a.B/C",
            &[("content-type", "application/grpc")],
            "message",
        )
        .unwrap();
    assert_eq!(answer.text(), "message");
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
}

#[test]
fn bulk_arrives_with_its_sum() {
    const LENGTH: u64 = 64 << 20;
    let world = WORLD.with_others();
    let _app = world.pod("shop/far").serve_bytes(7004);
    let client = world.pod("shop/client");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let both = runtime
        .block_on(client.exchange_bytes("shop/far:7004", LENGTH, 11))
        .unwrap();
    assert_eq!(both, ambit_tests::apps::bytes::whole(LENGTH, 11));
}

#[test]
fn nothing_of_a_world_stays_behind() {
    let world = World::start(plan("gone")).unwrap();
    let namespace = world.pod("shop/client").command("true");
    let name = namespace.get_args().nth(2).unwrap().to_owned();
    let sleeping = world
        .pod("shop/client")
        .command("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let folder = world.manifests().parent().unwrap().to_owned();
    let path = Path::new("/run/netns").join(&name);
    assert!(path.exists() && folder.exists());
    drop(world);
    assert!(!path.exists(), "the namespace is removed");
    assert!(!folder.exists(), "the folder is removed");
    assert!(!Path::new("/etc/netns").join(&name).exists());
    let mut sleeping = sleeping;
    assert!(!sleeping.wait().unwrap().success(), "programs are ended");
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains(name.to_str().unwrap()));
}
