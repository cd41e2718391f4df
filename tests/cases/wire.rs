//! What can be seen on the wire, and who is let in on 15008.

use std::net::{IpAddr, SocketAddr};

use ambit_hbone::Request;
use ambit_tests::mint::Mint;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::{CONNECT, Family, Pod};
use ambit_tests::world::World;
use ambit_tls::Limits;
use ambit_wire::authority::Authority;
use http::HeaderMap;

use crate::mesh::MESH;

const HBONE: u16 = 15008;
const ECHO: u16 = 9103;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

#[test]
fn nothing_of_the_payload_can_be_read_between_the_nodes() {
    let world = MESH.with_others();
    let _echo = world.pod("mesh/server").serve_echo(9101);
    let _outside = world.pod("outside/far").serve_echo(9101);
    let capture = world.capture();
    for family in [Family::V4, Family::V6] {
        let client = world.pod("mesh/client");
        let answer = client
            .ask_over("mesh/server:9101", family, b"MARKER-in-the-mesh")
            .unwrap();
        assert_eq!(answer, b"MARKER-in-the-mesh");
    }
    world
        .pod("outside/plain")
        .ask("outside/far:9101", b"MARKER-outside")
        .unwrap();
    let packets = capture.end();
    assert_eq!(
        packets.with("MARKER-in-the-mesh"),
        0,
        "of {} packets",
        packets.count()
    );
    assert!(packets.to_port(HBONE) > 0, "it went through the tunnel");
    assert!(
        packets.with("MARKER-outside") > 0,
        "the capture can see what is readable"
    );
}

#[test]
fn the_server_sees_the_client_pods_own_address() {
    let world = MESH.with_others();
    let client = world.pod("mesh/client");
    for server in ["mesh/server", "mesh/near"] {
        let _app = world.pod(server).serve_whoami(9102);
        for (family, own) in [
            (Family::V4, IpAddr::from(client.ipv4())),
            (Family::V6, client.ipv6().into()),
        ] {
            let told = client
                .ask_over(&format!("{server}:9102"), family, b"")
                .unwrap();
            assert_eq!(
                String::from_utf8(told).unwrap(),
                own.to_string(),
                "{server}"
            );
        }
    }
}

#[test]
fn the_proxy_shows_the_pods_certificate_and_refuses_a_client_without_one() {
    let world = MESH.with_others();
    let (client, server) = (world.pod("outside/plain"), world.pod("mesh/server"));
    let to = SocketAddr::from((server.ipv4(), HBONE));
    let shown = block_on(client.bare_tls(to, None)).unwrap();
    assert!(
        shown.leaf_holds(&server.identity()),
        "the pod's own identity"
    );
    assert!(!shown.leaf_holds(&world.pod("mesh/third").identity()));
    shown
        .answer
        .expect_err("a client without a certificate is refused");
}

/// Whether the proxy of `server` opens a stream to the echo port for a client that holds this
/// identity.
async fn let_in(client: &Pod, server: &Pod, mint: &Mint, identity: &str) -> bool {
    let to = SocketAddr::from((server.ipv4(), HBONE));
    let svid = mint.issue(identity).unwrap().svid().unwrap();
    let expected = [server.identity().parse().unwrap()];
    let stream = client.dial(&to.to_string()).await.unwrap();
    let Ok((tls, peer)) = ambit_tls::connect(&svid, stream, &expected, Limits::default()).await
    else {
        return false;
    };
    let settings = ambit_hbone::Settings::default();
    let Ok((tunnel, driver)) = ambit_hbone::client::handshake(tls, peer, &settings).await else {
        return false;
    };
    tokio::task::spawn_local(driver);
    let echo = SocketAddr::from((server.ipv4(), ECHO));
    let request = Request {
        authority: Authority::Socket(echo),
        headers: HeaderMap::new(),
    };
    let opening = tokio::time::timeout(CONNECT, tunnel.open(request)).await;
    opening.expect("an answer or a refusal").is_ok()
}

#[test]
fn only_certificates_of_this_mesh_are_let_in() {
    let world = MESH.with_others();
    let (client, server) = (world.pod("outside/plain"), world.pod("mesh/server"));
    let _app = server.serve_echo(ECHO);
    let mesh = Mint::of(&world.state()).unwrap();
    let stranger = Mint::stranger().unwrap();
    let good = "spiffe://cluster.local/ns/mesh/sa/client";
    let other = "spiffe://another.domain/ns/mesh/sa/client";
    let local = tokio::task::LocalSet::new();
    block_on(local.run_until(async {
        assert!(
            let_in(client, server, &mesh, good).await,
            "the positive control"
        );
        assert!(
            !let_in(client, server, &mesh, other).await,
            "another trust domain"
        );
    }));
    // Our own side would refuse the server first, so a client that checks nothing shows that the
    // server refuses too. With a certificate of the mesh the same client is answered.
    let to = SocketAddr::from((server.ipv4(), HBONE));
    for (mint, welcome) in [(&mesh, true), (&stranger, false)] {
        let credentials = mint.issue(good).unwrap();
        let shown = block_on(client.bare_tls(to, Some(&credentials))).unwrap();
        assert_eq!(shown.answer.is_ok(), welcome, "{:?}", shown.answer);
    }
}

#[test]
fn keys_withstand_a_quantum_computer_where_the_policy_says_so() {
    let plan = Plan::new("pqc")
        .namespace("mesh", &[AMBIENT])
        .pod("mesh/client", 1)
        .pod("mesh/server", 2)
        .setting("COMPLIANCE_POLICY", "pqc");
    let world = World::start(plan).unwrap_or_else(|error| panic!("{error:?}"));
    let _app = world.pod("mesh/server").serve_echo(9104);
    let capture = world.capture();
    assert!(world.pod("mesh/client").reaches("mesh/server:9104"));
    // What a ServerHello says in the clear (RFC 8446 4.2.8): X25519MLKEM768, and so many bytes of key.
    let hybrid = [0x11, 0xec, 0x04, 0x60];
    assert!(capture.end().with(hybrid) > 0);
    for node in ["ztunnel-n1", "ztunnel-n2"] {
        let dump = world.config_dump(node).unwrap();
        assert_eq!(dump["config"]["compliancePolicy"], "pqc");
        assert_eq!(
            dump["tls"]["keyExchange"],
            serde_json::json!(["X25519MLKEM768"])
        );
    }
}
