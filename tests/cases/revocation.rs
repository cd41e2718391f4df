//! A certificate that is taken back by a revocation list: what its holder has ends, and it gets
//! nothing new, whichever end of the connection it is at.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use ambit_tests::mint::Mint;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::{Shared, World, started};

use crate::contract::{tell_two_networks, world_with};

/// Both node proxies read one file of lists, which is not there at first.
static WORLD: Shared = Shared::new(|| {
    started(
        Plan::new("crl")
            .namespace("mesh", &[AMBIENT])
            .pod("mesh/client", 1)
            .pod("mesh/other", 1)
            .pod("mesh/server", 2)
            .pod("mesh/second", 2)
            .setting("CRL_PATH", "{run}/crl.pem"),
    )
});

/// Takes back the certificates of these pods, and nobody else's.
fn take_back(world: &World, pods: &[&str]) {
    let wanted: Vec<_> = pods.iter().map(|pod| world.pod(pod).identity()).collect();
    let mut serials = Vec::new();
    for node in ["ztunnel-n1", "ztunnel-n2"] {
        let dump = world.config_dump(node).unwrap();
        for certificate in dump["certificates"].as_array().unwrap() {
            let identity = certificate["identity"].as_str().unwrap();
            if wanted.iter().any(|wanted| wanted == identity) {
                let serial = &certificate["certChain"][0]["serialNumber"];
                serials.push(serial.as_str().unwrap().to_owned());
            }
        }
    }
    assert_eq!(serials.len(), pods.len(), "a certificate each");
    let list = Mint::of(&world.state())
        .unwrap()
        .take_back(&serials)
        .unwrap();
    let half = world.file("crl.half");
    fs::write(&half, list).unwrap();
    fs::rename(&half, world.file("crl.pem")).unwrap();
}

fn echoes(live: &mut TcpStream) -> bool {
    let mut back = [0; 4];
    live.write_all(b"ping").is_ok() && live.read_exact(&mut back).is_ok() && &back == b"ping"
}

fn rejections(world: &World, node: &str, reporter: &str) -> f64 {
    let labels = [("reporter", reporter)];
    world
        .metrics(node)
        .sum("istio_crl_policy_rejections_total", &labels)
}

/// `revoked` loses its connection from `client` to `server`, as `node` sees it in this direction, and
/// gets no new one. The others go on.
fn loses_everything(world: &World, revoked: &str, node: &str, direction: &str, reporter: &str) {
    let apps = ["mesh/server", "mesh/second"].map(|pod| world.pod(pod).serve_echo(9601));
    let [client, other] = ["mesh/client", "mesh/other"].map(|pod| world.pod(pod));
    world.eventually("all is well at first", || {
        client.reaches("mesh/server:9601")
    });
    let counted = rejections(world, node, reporter);
    // Two connections that rest on the certificate, and one that has nothing to do with it.
    let mut lives = [(); 2].map(|()| client.connect("mesh/server:9601").unwrap());
    let mut innocent = other.connect("mesh/second:9601").unwrap();
    for live in lives.iter_mut().chain([&mut innocent]) {
        assert!(echoes(live));
    }
    let clients: Vec<_> = lives
        .iter()
        .map(|live| live.local_addr().unwrap())
        .collect();

    take_back(world, &[revoked]);
    for live in &mut lives {
        let ended = live.read(&mut [0; 1]);
        let waits = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        assert!(!ended.as_ref().is_err_and(waits), "{ended:?}");
    }
    let of_it = [("direction", direction), ("error", "certificate revoked")];
    let records = world.wait_records(node, &of_it, 2);
    assert_eq!(records.len(), 2, "one record each: {records:?}");
    if direction == "outbound" {
        let sources: Vec<_> = records
            .iter()
            .map(|record| record.get("src.addr"))
            .collect();
        for client in clients {
            assert!(sources.contains(&client.to_string()), "{sources:?}");
        }
    }
    // Other cases may have left tunnels of its own that nothing used.
    world.eventually("its tunnel is counted", || {
        rejections(world, node, reporter) > counted
    });
    let ended = rejections(world, node, reporter);
    let failed = [("response_flags", "CERT_REVOKED"), ("reporter", reporter)];
    let metric = "istio_tcp_connections_failed_total";
    assert!(world.metrics(node).sum(metric, &failed) >= 2.0);

    assert!(!client.reaches("mesh/server:9601"));
    let refused = [
        ("direction", direction),
        ("error", "*certificate has been revoked"),
    ];
    world.wait_records(node, &refused, 1);
    assert!(rejections(world, node, reporter) > ended);
    assert!(echoes(&mut innocent), "others go on");
    assert!(other.reaches("mesh/second:9601"), "and begin anew");

    take_back(world, &[]);
    world.eventually("a hold that is lifted", || {
        client.reaches("mesh/server:9601")
    });
    assert!(echoes(&mut innocent));
    drop(apps);
}

#[test]
fn a_client_whose_certificate_is_revoked_loses_its_connections_and_gets_no_new_ones() {
    let world = WORLD.alone();
    loses_everything(
        &world,
        "mesh/client",
        "ztunnel-n2",
        "inbound",
        "destination",
    );
}

#[test]
fn a_server_whose_certificate_is_revoked_loses_its_connections_and_gets_no_new_ones() {
    let world = WORLD.alone();
    loses_everything(&world, "mesh/server", "ztunnel-n1", "outbound", "source");
}

#[test]
fn a_list_that_cannot_be_read_leaves_those_in_force_and_is_reported() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9602);
    take_back(&world, &["mesh/other"]);
    let current = |value| {
        let metrics = world.metrics("ztunnel-n2");
        metrics.sum("ambit_crl_not_current", &[]) == value
            && metrics.sum("ambit_crl_lists", &[]) == 1.0
    };
    world.eventually("the list is in force", || {
        current(0.0) && !world.pod("mesh/other").reaches("mesh/server:9602")
    });
    fs::write(world.file("crl.pem"), "nobody is revoked").unwrap();
    world.eventually("the file is reported", || current(1.0));
    assert!(!world.pod("mesh/other").reaches("mesh/server:9602"));
    assert!(world.pod("mesh/client").reaches("mesh/server:9602"));
    let dump = world.config_dump("ztunnel-n2").unwrap();
    assert!(
        dump["revocation"]["problem"]
            .as_str()
            .unwrap()
            .contains("revocation list")
    );
    take_back(&world, &[]);
    world.eventually("all is well again", || {
        current(0.0) && world.pod("mesh/other").reaches("mesh/server:9602")
    });
}

/// Two networks with a gateway between them; its tunnel, in which others run, rests on a certificate
/// that nobody takes back.
#[test]
fn a_certificate_taken_back_ends_what_runs_inside_the_tunnel_of_another() {
    let world = world_with(Plan::new("crl-nets").setting("CRL_PATH", "{run}/crl.pem"));
    let [client, server, gateway] =
        ["mesh/client", "mesh/server", "outside/gateway"].map(|path| world.pod(path));
    tell_two_networks(&world, &[server.identity()]);
    let mint = Mint::of(&world.state()).unwrap();
    let svid = mint.issue(&gateway.identity()).unwrap().svid().unwrap();
    let (outer, _) = gateway.serve_gateway(15009, svid, (server.ipv4(), 15008).into());
    let _echo = server.serve_echo(8080);
    for (revoked, node, direction) in [
        ("mesh/server", "ztunnel-n1", "outbound"),
        ("mesh/client", "ztunnel-n2", "inbound"),
    ] {
        let mut live = client.connect("server.mesh:80").unwrap();
        assert!(echoes(&mut live));
        take_back(&world, &[revoked]);
        let ended = live.read(&mut [0; 1]);
        let waits = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        assert!(!ended.as_ref().is_err_and(waits), "{revoked}: {ended:?}");
        let of_it = [("direction", direction), ("error", "certificate revoked")];
        world.wait_records(node, &of_it, 1);
        assert!(!client.reaches("server.mesh:80"), "{revoked}");
        take_back(&world, &[]);
        world.eventually("a hold that is lifted", || client.reaches("server.mesh:80"));
    }
    assert_eq!(outer.seen().count(), 1, "the outer tunnel goes on");
}
