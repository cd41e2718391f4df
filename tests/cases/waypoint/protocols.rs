//! Bulk and plain TCP through the waypoint, and what is not for it.

use bytes::Bytes;
use http::{Method, Version};

use super::{WORLD, serve};

#[test]
fn bodies_of_all_sizes_pass_both_ways() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    for (to, version) in [
        ("shop.mesh:80", Version::HTTP_11),
        ("h2.mesh:80", Version::HTTP_2),
    ] {
        let mut connection = world.pod("mesh/client").http(to, version).unwrap();
        for size in [0, 1, 16_383, 16_384, 100_000, 3_000_000] {
            let answer = connection
                .send(Method::POST, "/size", &[], vec![b'y'; size])
                .unwrap();
            assert_eq!(answer.json()["body"], size);
            let path = format!("/bytes/{size}");
            let answer = connection
                .send(Method::GET, &path, &[], Bytes::new())
                .unwrap();
            assert_eq!(answer.body.len(), size);
        }
    }
}

#[test]
fn a_plain_tcp_service_passes_the_waypoint() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let _echo = world.pod("mesh/v1").serve_greeting(9000, "220 ");
    let answer = world
        .pod("mesh/client")
        .ask("bytes.mesh:9000", b"not http")
        .unwrap();
    assert_eq!(answer, b"220 not http");
    let fields = [
        ("direction", "inbound"),
        ("src.workload", "waypoint"),
        ("dst.workload", "v1"),
    ];
    world.wait_records("ztunnel-n2", &fields, 1);
}

#[test]
fn the_waypoint_refuses_targets_that_are_not_its_own() {
    use ambit_hbone::Request;
    use ambit_tests::mint::Mint;
    use ambit_tls::Limits;
    use http::HeaderMap;

    let world = WORLD.alone();
    let _apps = serve(&world);
    let client = world.pod("mesh/client");
    let waypoint = world.pod("mesh/waypoint");
    let mint = Mint::of(&world.state()).unwrap();
    let svid = mint.issue(&client.identity()).unwrap().svid().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    // A service without this waypoint, a pod, the waypoint itself, a port the service has not.
    let targets = [
        ("v2.mesh:80", false),
        ("mesh/v1:8080", false),
        ("127.0.0.1:15000", false),
        ("shop.mesh:81", false),
        ("shop.mesh:80", true),
    ];
    runtime.block_on(local.run_until(async {
        let to = format!("{}:15008", waypoint.ipv4());
        let stream = world.pod("outside/plain").dial(&to).await.unwrap();
        let expected = [waypoint.identity().parse().unwrap()];
        let (tls, peer) = ambit_tls::connect(&svid, stream, &expected, Limits::default())
            .await
            .unwrap();
        let settings = ambit_hbone::Settings::default();
        let (tunnel, driver) = ambit_hbone::client::handshake(tls, peer, &settings)
            .await
            .unwrap();
        tokio::task::spawn_local(driver);
        for (target, welcome) in targets {
            let address = client.resolve(target, ambit_tests::pod::Family::V4);
            let authority = ambit_wire::authority::Authority::Socket(address);
            let request = Request {
                authority,
                headers: HeaderMap::new(),
            };
            let opened = tunnel.open(request).await;
            assert_eq!(opened.is_ok(), welcome, "{target}: {:?}", opened.err());
        }
    }));
}
