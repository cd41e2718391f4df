//! HTTP/2, gRPC, websocket and plain TCP through the waypoint.

use std::io::{Read, Write};

use ambit_tests::http::call;
use bytes::Bytes;
use http::{Method, Version};

use super::{WORLD, serve};

#[test]
fn http2_reaches_an_http2_server_and_is_never_made_less() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let client = world.pod("mesh/client");
    let mut connection = client.http("h2.mesh:80", Version::HTTP_2).unwrap();
    for _ in 0..20 {
        let answer = connection
            .send(Method::POST, "/two?x=1", &[], "body")
            .unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.version),
            (200, Version::HTTP_2)
        );
        assert_eq!(answer.json()["version"], "HTTP/2.0");
        assert_eq!(answer.json()["body"], 4);
    }
    // HTTP/1.1 to a port that says HTTP/1.1.
    let mut connection = client.http("shop.mesh:80", Version::HTTP_11).unwrap();
    let answer = connection
        .send(Method::GET, "/one", &[], Bytes::new())
        .unwrap();
    assert_eq!(answer.json()["version"], "HTTP/1.1");
}

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
fn grpc_calls_and_streams_keep_their_messages_and_their_status() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let client = world.pod("mesh/client");
    let one = call(client, "h2.mesh:81", "/shop.Cart/Add", &["one"]).unwrap();
    assert_eq!(one.messages, ["one"]);
    assert_eq!(one.status.as_deref(), Some("0"));
    // Each message is sent only when the one before has come back: a stream both ways.
    let many: Vec<String> = (0..50).map(|number| format!("message {number}")).collect();
    let texts: Vec<&str> = many.iter().map(String::as_str).collect();
    let stream = call(client, "h2.mesh:81", "/shop.Cart/Watch", &texts).unwrap();
    assert_eq!(stream.messages, many);
    assert_eq!(stream.status.as_deref(), Some("0"));
}

#[test]
fn a_websocket_opens_and_carries_bytes_both_ways() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let mut stream = world.pod("mesh/client").connect("shop.mesh:80").unwrap();
    stream
        .write_all(b"GET /socket HTTP/1.1\r\nhost: shop.mesh\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
        assert!(head.len() < 4096);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(
        head.to_ascii_lowercase().contains("upgrade: websocket"),
        "{head}"
    );
    for _ in 0..20 {
        stream.write_all(b"\x81\x85abcdhello").unwrap();
        let mut echoed = [0; 11];
        stream.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"\x81\x85abcdhello");
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
