//! Ten thousand handshakes that stand still: what they cost in memory, and that an honest one gets
//! through. Alone in its process, since the memory of the process is what is looked at.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in its helpers"
)]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ambit_model::identity::Identity;
use ambit_tls::authority::{Request, Root};
use ambit_tls::csr::KeyAndCsr;
use ambit_tls::{Limits, Svid, accept, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const HALF_OPEN: usize = 10_000;
/// Of those, so many have said their half: each costs the server its own.
const SPOKEN: usize = 1_000;
const DAY: Duration = Duration::from_secs(86_400);

fn svid(root: &Root, name: &str) -> Arc<Svid> {
    let identity = Identity::new("cluster.local", "shop", name).unwrap();
    let asked = KeyAndCsr::generate(&identity).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let chain = root
        .issue(&request, &identity, SystemTime::now(), DAY)
        .unwrap();
    Svid::from_chain(&asked.key, &chain).unwrap()
}

/// Resident bytes of this process.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// A client's first flight: one record.
async fn first_flight(client: Arc<Svid>, expected: Identity) -> Vec<u8> {
    let (near, mut wire) = tokio::io::duplex(1 << 16);
    let dialling = tokio::spawn(async move {
        // Nobody answers it.
        let _ = connect(&client, near, &[expected], Limits::default()).await;
    });
    let mut flight = vec![0; 5];
    wire.read_exact(&mut flight).await.unwrap();
    let length = usize::from(u16::from_be_bytes([flight[3], flight[4]]));
    flight.resize(5 + length, 0);
    wire.read_exact(&mut flight[5..]).await.unwrap();
    dialling.abort();
    flight
}

/// Lets every task do what it can: some dozens of them have their turn between two of ours.
async fn settle() {
    for _ in 0..HALF_OPEN {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn ten_thousand_handshakes_that_stand_still_are_cheap_and_in_nobodys_way() {
    let root = Root::generate("mesh", SystemTime::now(), 10 * DAY).unwrap();
    let (web, cart) = (svid(&root, "web"), svid(&root, "cart"));
    let flight = first_flight(Arc::clone(&web), cart.identity().clone()).await;
    // Longer than the test: what ends them in time has a test of its own, with a clock of its own.
    let limits = Limits {
        timeout: Duration::from_secs(600),
    };
    let mut wires: Vec<DuplexStream> = Vec::with_capacity(HALF_OPEN);
    let mut stalled = Vec::with_capacity(HALF_OPEN);
    let before = resident();
    for _ in 0..HALF_OPEN {
        let (near, far) = tokio::io::duplex(8 * 1024);
        wires.push(near);
        let cart = Arc::clone(&cart);
        stalled.push(tokio::spawn(async move {
            let _ = accept(&cart, far, limits).await;
        }));
    }
    settle().await;
    let silent = (resident() - before) / HALF_OPEN;
    let begun = Instant::now();
    for wire in wires.iter_mut().take(SPOKEN) {
        wire.write_all(&flight).await.unwrap();
    }
    settle().await;
    let spoken = resident().saturating_sub(before + silent * HALF_OPEN) / SPOKEN;
    println!(
        "silent: {silent} bytes each; spoken: {spoken} more, {:?} for {SPOKEN}",
        begun.elapsed()
    );
    assert!(stalled.iter().all(|task| !task.is_finished()));
    // What is read into, and the library's state before and after it answered.
    assert!(silent < 24 * 1024, "{silent} bytes");
    assert!(spoken < 32 * 1024, "{spoken} bytes");

    let (near, far) = tokio::io::duplex(16 * 1024);
    let expected = [cart.identity().clone()];
    let honest = async {
        tokio::join!(
            connect(&web, near, &expected, Limits::default()),
            accept(&cart, far, Limits::default())
        )
    };
    let (client, server) = honest.await;
    assert!(client.is_ok() && server.is_ok(), "{client:?} {server:?}");
}
