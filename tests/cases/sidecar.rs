//! The Envoy sidecars that the mesh is compared with: that they do what Istio's do, so that the comparison is one.

use ambit_tests::envoy::sidecar::{Outbound, Protocol, Sidecar};
use ambit_tests::plan::Plan;
use ambit_tests::world::{CHANGE, World};

const ECHO: u16 = 9801;
const HTTP: u16 = 9802;

/// `side/client` on one node calls `side/server` on the other: by its address on [`ECHO`], and as the service
/// `shop.side` for HTTP. `outside/plain` has no sidecar.
fn world() -> World {
    let plan = Plan::new("sidecar")
        .namespace("side", &[])
        .namespace("outside", &[])
        .pod("side/client", 1)
        .pod("side/server", 2)
        .pod("outside/plain", 1)
        .service("side/shop", "server", &[("http", 80, HTTP)]);
    let world = World::start(plan).unwrap();
    let [client, server] = ["side/client", "side/server"].map(|path| world.pod(path));
    let shop = client.resolve("shop.side:80", ambit_tests::pod::Family::V4);
    let inbound = vec![(ECHO, Protocol::Tcp), (HTTP, Protocol::Http)];
    let outbound = [
        (
            "server.side",
            server.ipv4().into(),
            ECHO,
            Protocol::Tcp,
            ECHO,
        ),
        ("shop.side", shop.ip(), 80, Protocol::Http, HTTP),
    ];
    let outbound = outbound.map(|(name, address, port, protocol, target)| Outbound {
        name: name.to_owned(),
        address,
        port,
        protocol,
        endpoints: (vec![server.clone()], target),
    });
    let sidecar = Sidecar {
        access_log: true,
        inbound,
        outbound: outbound.into(),
    };
    world
        .start_sidecars([(client, sidecar.clone()), (server, sidecar)])
        .unwrap();
    world
}

#[test]
fn sidecars_speak_mutual_tls_with_each_other_and_with_nobody_else() {
    let world = world();
    let [client, server, plain] =
        ["side/client", "side/server", "outside/plain"].map(|path| world.pod(path));
    let _echo = server.serve_echo(ECHO);
    let _http = server.serve_http(HTTP, "server");

    let capture = world.capture();
    let to = format!("side/server:{ECHO}");
    for _ in 0..3 {
        assert_eq!(
            client.ask(&to, b"MARKER-between").unwrap(),
            b"MARKER-between"
        );
    }
    let answer = client.request(http::Method::GET, "http://shop.side/MARKER-asked", &[]);
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200);
    let packets = capture.end();
    assert_eq!(packets.with("MARKER"), 0, "of {} packets", packets.count());
    assert!(
        packets.to_port(ECHO) > 0,
        "it went to the application's port"
    );

    let forwarded = answer.json()["headers"].to_string();
    assert!(
        forwarded.contains(&client.identity()),
        "the server is told who calls: {forwarded}"
    );
    let [as_server, _] = world.handshakes(server).unwrap();
    let [_, as_client] = world.handshakes(client).unwrap();
    assert!(
        as_server >= 4 && as_client >= 4,
        "{as_server} and {as_client} for four connections"
    );

    assert!(
        !plain.reaches(&to),
        "a pod without a certificate is not let in"
    );
    assert_eq!(world.handshakes(server).unwrap()[0], as_server);

    ambit_tests::expect::eventually_true(CHANGE, "both are in the access log", || {
        let log = world.tail("envoy-side-client");
        log.contains("MARKER-asked") && log.lines().count() >= 4
    });
}
