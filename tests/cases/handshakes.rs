//! A peer that wastes the handshakes of a pod's proxy.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use ambit_tests::plan::Plan;
use ambit_tests::pod::Pod;

use crate::contract::world_with;

/// Handshakes that it begins, one after the other.
const WASTED: u32 = 40;

/// What they have to take at least: all but sixteen, and a few whose time passes meanwhile, have 200 ms between them.
const LEAST: Duration = Duration::from_secs(4);

/// Begins something that is no handshake, and waits until it is thrown out.
fn waste(peer: &Pod, to: &str) {
    let mut stream = peer.connect(to).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // It may be thrown out before it has said anything.
    let _ = stream.write_all(&[b'x'; 100]);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn who_wastes_them_waits_and_nobody_else_does() {
    let world = world_with(Plan::new("waste"));
    let [peer, client, server] =
        ["outside/gateway", "mesh/client", "mesh/server"].map(|path| world.pod(path));
    let _echo = server.serve_echo(8080);
    let to = format!("{}:15008", server.ipv4());
    std::thread::scope(|scope| {
        let wasting = scope.spawn(|| {
            let begun = Instant::now();
            for _ in 0..WASTED {
                waste(peer, &to);
            }
            assert!(begun.elapsed() >= LEAST, "{:?}", begun.elapsed());
        });
        while !wasting.is_finished() {
            let begun = Instant::now();
            let answer = client.ask("server.mesh:80", b"is anybody there?");
            assert_eq!(answer.unwrap(), b"is anybody there?");
            assert!(begun.elapsed() < LEAST / 2, "{:?}", begun.elapsed());
        }
    });
    let log = std::fs::read_to_string(world.programs().log("ztunnel-n2")).unwrap();
    assert_eq!(log.matches("wastes handshakes").count(), 1);
}
