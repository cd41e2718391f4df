//! What a control plane may say besides what ours says: application tunnels, other networks.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ambit_hbone::{OpenError, Request, StreamIo, client};
use ambit_tests::apps::bytes::whole;
use ambit_tests::mint::Mint;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::{ANSWER, Pod};
use ambit_tests::world::told::{service, workload};
use ambit_tests::world::{CHANGE, World};
use ambit_tls::Limits;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const VIP: &str = "10.96.0.10";

/// `mesh/client` on one node, `mesh/server` and `mesh/second` on the other; `outside/gateway` is no
/// part of the mesh.
pub fn world(name: &str) -> World {
    world_with(Plan::new(name))
}

/// The same, with what `plan` has already.
pub fn world_with(plan: Plan) -> World {
    let plan = plan
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod("mesh/client", 1)
        .pod("mesh/server", 2)
        .pod("mesh/second", 2)
        .pod("outside/gateway", 1)
        .service("mesh/server", "server", &[("tcp", 80, 8080)])
        // Each thread has its own tunnels, and they are counted here.
        .setting("ZTUNNEL_WORKER_THREADS", "1");
    World::start(plan).unwrap_or_else(|error| panic!("{error:?}"))
}

#[test]
fn an_application_tunnel_carries_the_proxy_header_to_the_port_it_names() {
    let world = world("apptun");
    let [client, server, second] =
        ["client", "server", "second"].map(|name| world.pod(&format!("mesh/{name}")));
    let waypoint = json!({"destination": format!("/{}", second.ipv4()), "hboneMtlsPort": 15008});
    let sandwich = json!({"applicationTunnel": {"protocol": "PROXY", "port": 15088}});
    let behind = json!({"services": {"mesh/server.mesh.svc.cluster.local": {"80": 8080}}});
    let mesh = json!({
        "workloads": [
            workload(client, "", json!({})),
            workload(server, "", behind),
            workload(second, "", sandwich),
        ],
        "services": [service("mesh/server", &format!("/{VIP}"), 8080, json!({"waypoint": waypoint}))],
    });
    world.tell(1, "", &mesh);
    world.tell(2, "", &mesh);
    let app = second.serve_proxied(15088);
    let told = client
        .ask("server.mesh:80", b"through the sandwich")
        .unwrap();
    let expected = format!(
        "{} {VIP}:80 {} server.mesh.svc.cluster.local 127.0.0.1 through the sandwich",
        client.ipv4(),
        client.identity(),
    );
    assert_eq!(String::from_utf8(told).unwrap(), expected);
    assert_eq!(app.seen().count(), 1);
    let identity = second.identity();
    let fields = [
        ("dst.hbone_addr", "10.96.0.10:80"),
        ("dst.identity", identity.as_str()),
        ("dst.service", "server.mesh.svc.cluster.local"),
    ];
    world.wait_records("ztunnel-n1", &fields, 1);
    // What is no waypoint of an address and no application tunnel takes nothing for it.
    let mut plain = mesh.clone();
    plain["workloads"][2] = workload(second, "", json!({}));
    plain["services"][0]["waypoint"] = json!(null);
    world.tell(2, "", &plain);
    client.ask("server.mesh:80", b"refused").unwrap_err();
    let refused = [("direction", "inbound"), ("error", "*ip mismatch")];
    world.wait_records("ztunnel-n2", &refused, 1);
}

const FAR: &str = "server.mesh.svc.cluster.local";

/// Two networks: the client's node is in one, the server's in the other, and a gateway between them
/// that is asked for the service by name. `sans` is whom the service lets be at the far end.
pub fn tell_two_networks(world: &World, sans: &[String]) {
    let [client, server, gateway] =
        ["mesh/client", "mesh/server", "outside/gateway"].map(|path| world.pod(path));
    let far = json!({
        "uid": "remote/SplitHorizonWorkload/mesh/server", "workloadIps": [],
        "name": "far", "workloadName": "far", "canonicalName": "far",
        "networkGateway": {"destination": format!("two/{}", gateway.ipv4()), "hboneMtlsPort": 15009},
        "services": {(format!("mesh/{FAR}")): {"80": 8080}},
    });
    let vouched = json!({"subjectAltNames": sans});
    world.tell(
        1,
        "one",
        &json!({
            "workloads": [
                workload(client, "one", json!({})),
                workload(server, "two", far),
                workload(gateway, "two", json!({})),
            ],
            "services": [service("mesh/server", &format!("one/{VIP}"), 8080, vouched)],
        }),
    );
    let behind = json!({"services": {(format!("mesh/{FAR}")): {"80": 8080}}});
    // To the other side the client's address belongs to somebody else.
    let namesake = json!({
        "uid": "x//Pod/outside/gateway", "serviceAccount": "client", "namespace": "mesh",
        "name": "namesake", "workloadName": "namesake", "canonicalName": "namesake",
    });
    world.tell(
        2,
        "two",
        &json!({
            "workloads": [workload(server, "two", behind), workload(gateway, "two", namesake)],
            "services": [service("mesh/server", &format!("two/{VIP}"), 8080, json!({}))],
        }),
    );
}

#[test]
fn a_gateway_joins_two_networks_and_sees_only_the_outer_tunnel() {
    let world = world("twonets");
    let [client, server, gateway] =
        ["mesh/client", "mesh/server", "outside/gateway"].map(|path| world.pod(path));
    tell_two_networks(&world, &[server.identity()]);
    let svid = Mint::of(&world.state())
        .unwrap()
        .issue(&gateway.identity())
        .unwrap()
        .svid()
        .unwrap();
    let inner = (server.ipv4(), 15008).into();
    let (app, requests) = gateway.serve_gateway(15009, svid, inner);

    let echo = server.serve_echo(8080);
    for _ in 0..2 {
        let answer = client.ask("server.mesh:80", b"MARKER across").unwrap();
        assert_eq!(answer, b"MARKER across");
    }
    assert_eq!(echo.seen().count(), 2);
    drop(echo);
    assert_eq!(app.seen().count(), 1, "the outer tunnel is shared");
    let asked = requests.all();
    assert_eq!(asked.len(), 2, "the inner one is not");
    for request in asked {
        assert_eq!(request.authority.to_string(), format!("{FAR}:80"));
        assert_eq!(request.headers.get("x-forwarded-network"), None);
        let baggage = request.headers["baggage"].to_str().unwrap();
        assert!(baggage.contains("k8s.namespace.name=mesh"), "{baggage}");
    }
    let (to, at) = (server.identity(), format!("{}:15009", gateway.ipv4()));
    let outbound = [
        ("direction", "outbound"),
        ("dst.addr", at.as_str()),
        ("dst.hbone_addr", "server.mesh.svc.cluster.local:80"),
        ("dst.identity", to.as_str()),
        ("dst.workload", "server"),
        ("dst.namespace", "mesh"),
        ("dst.service", FAR),
    ];
    world.wait_records("ztunnel-n1", &outbound, 2);
    let from = client.identity();
    let inbound = [
        ("direction", "inbound"),
        ("src.identity", from.as_str()),
        // Not whom the record of the gateway's address names.
        ("src.workload", "client"),
        ("dst.workload", "server"),
        ("dst.service", FAR),
    ];
    world.wait_records("ztunnel-n2", &inbound, 2);
    let labels = [
        ("reporter", "source"),
        ("destination_workload", "server"),
        ("destination_principal", to.as_str()),
        ("connection_security_policy", "mutual_tls"),
    ];
    world.wait_metric(
        "ztunnel-n1",
        "istio_tcp_connections_closed_total",
        &labels,
        2.0,
    );

    let _bytes = server.serve_bytes(8080);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let length = 3_000_000;
    let both = runtime
        .block_on(client.exchange_bytes("server.mesh:80", length, 7))
        .unwrap();
    assert_eq!(
        both,
        whole(length, 7),
        "every byte, both ways, with half-close"
    );
}

#[test]
fn whoever_is_behind_a_gateway_must_be_whom_the_service_names() {
    let world = world("twonets-id");
    let [client, server, gateway] =
        ["mesh/client", "mesh/server", "outside/gateway"].map(|path| world.pod(path));
    let svid = Mint::of(&world.state())
        .unwrap()
        .issue(&gateway.identity())
        .unwrap()
        .svid()
        .unwrap();
    let inner = (server.ipv4(), 15008).into();
    let (_app, requests) = gateway.serve_gateway(15009, svid, inner);
    let echo = server.serve_echo(8080);
    tell_two_networks(
        &world,
        &["spiffe://cluster.local/ns/mesh/sa/second".to_owned()],
    );
    client.ask("server.mesh:80", b"for another").unwrap_err();
    let refused = [("direction", "outbound"), ("error", "*unexpected identity")];
    world.wait_records("ztunnel-n1", &refused, 1);
    assert!(!requests.all().is_empty(), "the gateway was reached");

    tell_two_networks(&world, &[]);
    let before = requests.all().len();
    client.ask("server.mesh:80", b"for nobody").unwrap_err();
    let refused = [("direction", "outbound"), ("error", "*names no identity")];
    world.wait_records("ztunnel-n1", &refused, 1);
    assert_eq!(requests.all().len(), before, "not worth asking the gateway");
    assert_eq!(echo.seen().count(), 0);
}

#[test]
fn an_endpoint_that_cannot_be_reached_costs_no_connection() {
    let world = world("retry");
    let [client, server, dead] =
        ["mesh/client", "mesh/server", "outside/gateway"].map(|path| world.pod(path));
    let behind = || json!({"services": {(format!("mesh/{FAR}")): {"80": 8080}}});
    let mesh = json!({
        "workloads": [
            workload(client, "", json!({})),
            workload(server, "", behind()),
            // Nothing listens on its tunnel port.
            workload(dead, "", behind()),
        ],
        "services": [service("mesh/server", &format!("/{VIP}"), 8080, json!({}))],
    });
    world.tell(1, "", &mesh);
    world.tell(2, "", &mesh);
    let _echo = server.serve_echo(8080);
    // Half of them meet the dead one first: that none does is less likely than 1 in 16 million.
    for _ in 0..24 {
        assert_eq!(
            client.ask("server.mesh:80", b"whoever").unwrap(),
            b"whoever"
        );
    }
    let identity = server.identity();
    let fields = [
        ("direction", "outbound"),
        ("dst.identity", identity.as_str()),
    ];
    let found = world.wait_records("ztunnel-n1", &fields, 24);
    assert!(found.iter().all(|record| record.get("error").is_empty()));
    // Nobody else to try, or a workload that its client named: the failure is told.
    let to = format!("{}:8080", dead.ipv4());
    client.ask(&to, b"nobody").unwrap_err();
    world.wait_records("ztunnel-n1", &[("error", "*connection failed")], 1);
}

#[test]
fn a_tunnel_to_a_pod_that_is_gone_ends_long_before_it_would_look_dead() {
    let world = world("gone");
    let (client, server) = (world.pod("mesh/client"), world.pod("mesh/server"));
    let _ticks = server.serve_ticks(8080, Duration::from_millis(100));
    let mut stream = client.connect("server.mesh:80").unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    // As when a node dies: its proxy tells nobody.
    world.programs().signal("ztunnel-n2", Signal::SIGSTOP);
    let start = Instant::now();
    world.remove("pod-mesh-server");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap_err();
    let took = start.elapsed();
    // Five seconds after the change is known; a silent peer alone takes twenty to thirty.
    assert!(took < Duration::from_secs(18), "{took:?}");
}

/// A tunnel from `pod`, as `identity`, to the proxy that holds `expected`.
async fn tunnel(
    world: &World,
    pod: &Pod,
    identity: &str,
    (to, expected): (IpAddr, &str),
) -> client::Tunnel {
    let mint = Mint::of(&world.state()).unwrap();
    let svid = mint.issue(identity).unwrap().svid().unwrap();
    let to = SocketAddr::from((to, 15008)).to_string();
    let stream = pod.dial(&to).await.unwrap();
    let expected = [expected.parse().unwrap()];
    let connecting = ambit_tls::connect(&svid, stream, &expected, Limits::default());
    let (tls, peer) = connecting.await.unwrap();
    let settings = ambit_hbone::Settings::default();
    let (tunnel, driver) = client::handshake(tls, peer, &settings).await.unwrap();
    tokio::task::spawn_local(driver);
    tunnel
}

fn ask_for(to: IpAddr, port: u16) -> Request {
    Request {
        authority: SocketAddr::from((to, port)).into(),
        headers: http::HeaderMap::new(),
    }
}

/// Opens a tunnel from `pod` to the proxy of node 2 itself, as `identity`, and asks for its metrics
/// port.
async fn to_the_proxy(world: &World, pod: &Pod, identity: &str) -> Result<StreamIo, OpenError> {
    let at = world.node_address(2);
    let proxy = "spiffe://cluster.local/ns/istio-system/sa/ztunnel";
    let tunnel = tunnel(world, pod, identity, (at, proxy)).await;
    Ok(tunnel.open(ask_for(at, 15020)).await?.stream.into())
}

#[test]
fn the_peers_of_a_pod_that_is_going_are_told_while_it_is_still_there() {
    let world = world("going");
    let (plain, server) = (world.pod("outside/gateway"), world.pod("mesh/server"));
    let _echo = server.serve_echo(8080);
    let (at, holds) = (IpAddr::from(server.ipv4()), server.identity());
    let local = tokio::task::LocalSet::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    local.block_on(&runtime, async {
        let client = "spiffe://cluster.local/ns/mesh/sa/client";
        let tunnel = tunnel(&world, plain, client, (at, &holds)).await;
        let opened = tunnel.open(ask_for(at, 8080)).await.unwrap();
        let mut stream = StreamIo::from(opened.stream);
        let manifest = world.manifests().join("pod-mesh-server.yaml");
        let text = std::fs::read_to_string(manifest).unwrap();
        let unready = text.replace(r#""status": "True""#, r#""status": "False""#);
        assert_ne!(text, unready);
        world.apply("pod-mesh-server", &unready);
        let told = async {
            while tunnel.is_ready() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(CHANGE, told).await.expect("GOAWAY");
        // What is open goes on.
        stream.write_all(b"still here").await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = [0; 10];
        let answered = tokio::time::timeout(ANSWER, stream.read_exact(&mut answer)).await;
        answered.expect("an answer").unwrap();
        assert_eq!(&answer, b"still here");
    });
}

#[test]
fn the_proxy_itself_is_reached_through_a_tunnel_and_under_policy() {
    let world = world("own");
    let plain = world.pod("outside/gateway");
    let scraper = "spiffe://cluster.local/ns/outside/sa/gateway";
    let local = tokio::task::LocalSet::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    local.block_on(&runtime, async {
        let mut held = to_the_proxy(&world, plain, scraper).await.unwrap();
        held.write_all(b"GET /metrics HTTP/1.1\r\nhost: proxy\r\n\r\n").await.unwrap();
        held.flush().await.unwrap();
        let mut answer = [0; 15];
        held.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");

        let deny = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "case", "namespace": "istio-system"},
            "spec": {"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["outside"]}}]}]},
        });
        let _denied = world.apply_for_now("case", &deny.to_string());
        // The connection that was allowed ends too.
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(CHANGE, held.read_to_end(&mut rest)).await;
        ended.expect("an end").unwrap_err();
        match to_the_proxy(&world, plain, scraper).await {
            Err(OpenError::Refused { status, .. }) => assert_eq!(status, 401),
            other => panic!("{other:?}"),
        }
        let other = "spiffe://cluster.local/ns/mesh/sa/client";
        to_the_proxy(&world, plain, other).await.unwrap();
    });
    let records = [
        ("direction", "inbound"),
        ("dst.workload", "ztunnel-n2"),
        ("src.identity", scraper),
    ];
    assert!(world.wait_records("ztunnel-n2", &records, 2).len() >= 2);
}

#[test]
fn a_listed_policy_that_does_not_come_forbids_and_is_shown() {
    let world = world("late");
    let (client, server) = (world.pod("mesh/client"), world.pod("mesh/server"));
    let listing = json!({"authorizationPolicies": ["mesh/late"]});
    let of = |listing| json!({"workloads": [workload(client, "", json!({})), workload(server, "", listing)]});
    world.tell(1, "", &of(json!({})));
    world.tell(2, "", &of(listing));
    let echo = server.serve_echo(8080);
    client.ask("mesh/server:8080", b"may wait").unwrap_err();
    let start = Instant::now();
    client.ask("mesh/server:8080", b"may not").unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "the time to wait is over"
    );
    let refused = [
        ("direction", "inbound"),
        ("error", "policy is not known yet: mesh/late"),
    ];
    world.wait_records("ztunnel-n2", &refused, 2);
    assert_eq!(echo.seen().count(), 0);
    let shown = world.config_dump("ztunnel-n2").unwrap();
    let expected = json!([{"workload": "Kubernetes//Pod/mesh/server", "policy": "mesh/late"}]);
    assert_eq!(shown["unresolvedPolicies"], expected);
}
