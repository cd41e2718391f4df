//! What Istio's integration tests hold its node proxy to, where no other case here does. The whole
//! list, with our tests' names, stands in `docs/compatibility.md`.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ambit_hbone::{OpenError, Request, StreamIo, client};
use ambit_tests::mint::Mint;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::world::World;
use ambit_tests::world::told::{service, workload};
use ambit_tls::Limits;
use ambit_wire::Authority;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use crate::mesh::{MESH, POLICED};

/// Asks the proxy of `server` for `authority` as `identity`, from a pod outside of the mesh.
async fn ask(
    world: &World,
    identity: &str,
    server: &Pod,
    authority: Authority,
) -> Result<StreamIo, OpenError> {
    let mint = Mint::of(&world.state()).unwrap();
    let svid = mint.issue(identity).unwrap().svid().unwrap();
    let to = SocketAddr::from((server.ipv4(), 15008)).to_string();
    let stream = world.pod("outside/plain").dial(&to).await.unwrap();
    let expected = [server.identity().parse().unwrap()];
    let connecting = ambit_tls::connect(&svid, stream, &expected, Limits::default());
    let (tls, peer) = connecting.await.unwrap();
    let settings = ambit_hbone::Settings::default();
    let (tunnel, driver) = client::handshake(tls, peer, &settings).await.unwrap();
    tokio::task::spawn_local(driver);
    let request = Request {
        authority,
        headers: http::HeaderMap::new(),
    };
    Ok(tunnel.open(request).await?.stream.into())
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, work)
}

/// The status of a refusal, or 200.
async fn status(world: &World, server: &Pod, authority: &str) -> u16 {
    let client = "spiffe://cluster.local/ns/mesh/sa/client";
    match ask(world, client, server, authority.parse().unwrap()).await {
        Ok(_) => 200,
        Err(OpenError::Refused { status, .. }) => status.as_u16(),
        Err(other) => panic!("{authority}: {other}"),
    }
}

#[test]
fn a_connect_is_answered_by_what_it_asks_for() {
    let world = MESH.with_others();
    let (server, third) = (world.pod("mesh/server"), world.pod("mesh/third"));
    let _app = server.serve_echo(9901);
    let at = server.ipv4();
    let cases = [
        (format!("{at}:9901"), 200),
        (format!("{}:9901", third.ipv4()), 400),
        (format!("{at}:15001"), 503),
        (format!("{at}:9999"), 503),
        ("nobody.mesh.svc.cluster.local:80".to_owned(), 503),
        ("server.mesh.svc.cluster.local:81".to_owned(), 503),
    ];
    block_on(async {
        for (authority, expected) in cases {
            assert_eq!(
                status(&world, server, &authority).await,
                expected,
                "{authority}"
            );
        }
    });
    let mismatch = format!("ip mismatch: {at} != {}", third.ipv4());
    world.wait_records("ztunnel-n2", &[("error", &mismatch)], 1);
}

#[test]
fn a_connect_by_a_services_name_reaches_the_port_behind_it() {
    let world = POLICED.alone();
    let server = world.pod("mesh/server");
    let _app = server.serve_echo(8080);
    block_on(async {
        let client = "spiffe://cluster.local/ns/mesh/sa/client";
        let authority: Authority = "server.mesh.svc.cluster.local:80".parse().unwrap();
        let mut stream = ask(&world, client, server, authority).await.unwrap();
        stream.write_all(b"by name").await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"by name");
    });
}

#[test]
fn a_client_that_no_allow_policy_names_is_told_401_and_why() {
    let world = POLICED.alone();
    let server = world.pod("mesh/server");
    let _app = server.serve_echo(9902);
    let text = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "case", "namespace": "mesh"},
        "spec": {"action": "ALLOW", "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/mesh/sa/someone"]}}]}]},
    });
    let authority = format!("{}:9902", server.ipv4());
    let applied = world.apply_for_now("case", &text.to_string());
    world.eventually("the policy is in force", || {
        block_on(status(&world, server, &authority)) == 401
    });
    let told = [("error", "*allow policies exist, but none allowed")];
    world.wait_records("ztunnel-n2", &told, 1);
    drop(applied);
    world.eventually("all are let in again", || {
        block_on(status(&world, server, &authority)) == 200
    });
}

/// Whether what is sent to an address comes to anybody who understands it: `GET` gets an answer.
fn answered(client: &Pod, to: &str) -> Option<String> {
    let mut stream = client.connect(to).ok()?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: nobody\r\n\r\n")
        .ok()?;
    let mut answer = Vec::new();
    // A proxy that is spoken to in the wrong way may say so in TLS before it ends the connection.
    let _ = stream.read_to_end(&mut answer);
    answer
        .starts_with(b"HTTP/")
        .then(|| String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn the_proxys_own_ports_lead_nowhere_from_pods_of_the_mesh_and_others() {
    let world = MESH.with_others();
    let (client, plain) = (world.pod("mesh/client"), world.pod("outside/plain"));
    let own = client.ipv4().to_string();
    let near = world.pod("mesh/near").ipv4().to_string();
    let node = world.node_address(1).to_string();
    for (from, hosts) in [
        (
            client,
            [own.as_str(), "127.0.0.1", near.as_str(), node.as_str()],
        ),
        (
            plain,
            [own.as_str(), "127.0.0.1", near.as_str(), node.as_str()],
        ),
    ] {
        for host in hosts {
            for port in [15001, 15006, 15008, 15080, 15000] {
                let to = format!("{host}:{port}");
                assert_eq!(answered(from, &to), None, "{to} from {}", from.path());
            }
            if host != node {
                for port in [15020, 15021] {
                    let to = format!("{host}:{port}");
                    assert_eq!(answered(from, &to), None, "{to} from {}", from.path());
                }
            }
        }
    }
    assert!(world.programs().runs("ztunnel-n1"));
    assert!(answered(plain, &format!("{node}:15021")).is_some());
}

#[test]
fn certificates_are_had_for_the_pods_of_the_node_and_for_no_others() {
    let world = MESH.with_others();
    for (node, own, others) in [
        (
            "ztunnel-n1",
            ["mesh/client", "mesh/near", "other/stranger"].as_slice(),
            ["mesh/server", "mesh/third", "outside/plain"].as_slice(),
        ),
        (
            "ztunnel-n2",
            ["mesh/server", "mesh/third"].as_slice(),
            ["mesh/client", "mesh/near", "outside/far"].as_slice(),
        ),
    ] {
        let held = || world.config_dump(node).unwrap()["certificates"].to_string();
        for pod in own {
            let identity = world.pod(pod).identity();
            // Had before anybody asked for a connection.
            world.eventually(&format!("{node} holds {identity}"), || {
                held().contains(&identity)
            });
        }
        for pod in others {
            assert!(
                !held().contains(&world.pod(pod).identity()),
                "{node}: {pod}"
            );
        }
    }
}

const NAME: &str = "svc.cluster.local";

/// A service with a waypoint.
fn behind(name: &str, vip: &str, waypoint: &str) -> Value {
    let waypoint = json!({"waypoint": {"destination": waypoint, "hboneMtlsPort": 15008}});
    service(&format!("mesh/{name}"), &format!("/{vip}"), 8080, waypoint)
}

/// Tells node 1 of three services behind one waypoint, which each names in another way, of a workload
/// behind it, and of a service without one.
fn tell_waypoints(world: &World) {
    let paths = ["mesh/client", "mesh/near", "mesh/server", "outside/gateway"];
    let [client, near, server, gateway] = paths.map(|path| world.pod(path));
    let at = format!("/{}", gateway.ipv4());
    let both = format!("mesh/both.mesh.{NAME}");
    let serves = json!({"services": {(both.as_str()): {"80": 8080}}});
    let mut guarded = serves.clone();
    guarded["waypoint"] = json!({"destination": at, "hboneMtlsPort": 15008});
    let named = json!({
        "hostname": "waypoint.example",
        "services": {(format!("outside/gw.outside.{NAME}")): {"15008": 15008}},
    });
    let mut gw = service("outside/gw", "/10.96.0.20", 15008, json!({}));
    gw["ports"] = json!({"15008": 15008});
    let mesh = json!({
        "workloads": [
            workload(client, "", json!({})),
            workload(near, "", serves),
            workload(server, "", guarded),
            workload(gateway, "", named),
        ],
        "services": [
            behind("one", "10.96.0.11", &at),
            behind("two", "10.96.0.12", &format!("outside/gw.outside.{NAME}")),
            behind("three", "10.96.0.13", "outside/waypoint.example"),
            gw,
            service("mesh/both", "/10.96.0.14", 8080, json!({})),
        ],
    });
    world.tell(1, "", &mesh);
}

#[test]
fn a_waypoint_is_found_by_its_address_its_services_name_and_its_own() {
    let plan = Plan::new("wayby")
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod("mesh/client", 1)
        .pod("mesh/near", 1)
        .pod("mesh/server", 2)
        .pod("outside/gateway", 2);
    let world = World::start(plan).unwrap_or_else(|error| panic!("{error:?}"));
    tell_waypoints(&world);
    let paths = ["mesh/client", "mesh/near", "mesh/server", "outside/gateway"];
    let [client, near, server, gateway] = paths.map(|path| world.pod(path));
    let _echo = server.serve_echo(8080);
    let mint = Mint::of(&world.state()).unwrap();
    let svid = mint.issue(&gateway.identity()).unwrap().svid().unwrap();
    let to = (IpAddr::from(server.ipv4()), 8080).into();
    let (_app, requests) = gateway.serve_gateway(15008, svid, to);
    let direct = format!("{}:8080", server.ipv4());
    let addresses = [
        "10.96.0.11:80",
        "10.96.0.12:80",
        "10.96.0.13:80",
        direct.as_str(),
    ];
    for (number, to) in addresses.into_iter().enumerate() {
        assert_eq!(
            client.ask(to, b"through it").unwrap(),
            b"through it",
            "{to}"
        );
        assert_eq!(requests.all()[number].authority.to_string(), to);
        let (hop, identity) = (format!("{}:15008", gateway.ipv4()), gateway.identity());
        let fields = [
            ("direction", "outbound"),
            ("dst.addr", hop.as_str()),
            ("dst.hbone_addr", to),
            ("dst.identity", identity.as_str()),
        ];
        world.wait_records("ztunnel-n1", &fields, 1);
    }
    // Of a service without one the endpoints are used, in turn by chance, whatever waypoint the
    // workloads have.
    let other = near.serve_echo(8080);
    for _ in 0..51 {
        assert_eq!(client.ask("10.96.0.14:80", b"either").unwrap(), b"either");
    }
    assert_eq!(requests.all().len(), addresses.len());
    let here = other.seen().count();
    assert!((1..51).contains(&here), "{here} of 51 on this node");
    let fields = [
        ("direction", "outbound"),
        ("dst.service", "both.mesh.svc.cluster.local"),
    ];
    world.wait_records("ztunnel-n1", &fields, 51);
    let labels = [("reporter", "source"), ("destination_service_name", "both")];
    world.wait_metric(
        "ztunnel-n1",
        "istio_tcp_connections_closed_total",
        &labels,
        51.0,
    );
}

/// The text of all Rust files below a folder.
fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_documentation_names_is_there() {
    let text = include_str!("../../docs/compatibility.md");
    let (_, table) = text
        .split_once("## Istio's tests of its node proxy, and ours")
        .unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all = String::new();
    for folder in ["crates", "ztunnel", "tests"] {
        sources(&root.join(folder), &mut all);
    }
    let mut named = 0;
    for quoted in table.split('`').skip(1).step_by(2) {
        if quoted.contains('/') {
            assert!(root.join(quoted).exists(), "{quoted}");
        } else {
            let name = quoted.rsplit("::").next().unwrap();
            if name.contains('_') {
                assert!(all.contains(&format!("fn {name}(")), "{quoted}");
                named += 1;
            }
        }
    }
    assert!(named > 30, "{named}");
}
