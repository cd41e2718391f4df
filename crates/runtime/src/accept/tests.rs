use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::{Accept, AcceptError, accept_loop, classify};
use crate::drain::drain;

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

#[test]
fn tells_errors_apart() {
    let cases = [
        (103, AcceptError::Connection), // ECONNABORTED
        (1, AcceptError::Connection),   // EPERM
        (24, AcceptError::Exhausted),   // EMFILE
        (23, AcceptError::Exhausted),   // ENFILE
        (105, AcceptError::Exhausted),  // ENOBUFS
        (9, AcceptError::Listener),     // EBADF
        (22, AcceptError::Listener),    // EINVAL
    ];
    for (code, class) in cases {
        assert_eq!(
            classify(&io::Error::from_raw_os_error(code)),
            class,
            "{code}"
        );
    }
}

/// Answers from a list, then never.
struct Script(RefCell<VecDeque<Result<u32, i32>>>);

impl Script {
    fn new(steps: impl IntoIterator<Item = Result<u32, i32>>) -> Self {
        Self(RefCell::new(steps.into_iter().collect()))
    }
}

impl Accept for Script {
    type Connection = u32;

    async fn accept(&self) -> io::Result<(u32, SocketAddr)> {
        let step = self.0.borrow_mut().pop_front();
        match step {
            Some(Ok(connection)) => Ok((connection, PEER)),
            Some(Err(code)) => Err(io::Error::from_raw_os_error(code)),
            None => std::future::pending().await,
        }
    }

    fn accept_now(&self) -> Option<(u32, SocketAddr)> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn waits_longer_and_longer_while_descriptors_are_exhausted() {
    let (trigger, draining) = drain();
    let steps = std::iter::repeat_n(Err(24), 10).chain([Ok(1), Err(24), Ok(2)]);
    let mut seen = Vec::new();
    let start = Instant::now();
    accept_loop(Script::new(steps), &draining, |connection, _| {
        seen.push((connection, start.elapsed().as_millis()));
        if connection == 2 {
            trigger.stop();
        }
    })
    .await
    .unwrap();
    // 5+10+20+40+80+160+320+640+1000+1000, and one first wait again after a success.
    assert_eq!(seen, [(1, 3275), (2, 3280)]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_dying_connections_does_not_make_it_spin() {
    let (trigger, draining) = drain();
    let steps = std::iter::repeat_n(Err(103), 200).chain([Ok(1)]);
    let start = Instant::now();
    accept_loop(Script::new(steps), &draining, |_, _| trigger.stop())
        .await
        .unwrap();
    // A pause after every 64 (5, 10 and 20 ms), each rounded up to the timer's tick.
    let waited = start.elapsed().as_millis();
    assert!((35..=38).contains(&waited), "{waited} ms");
}

#[tokio::test(start_paused = true)]
async fn single_dying_connections_cost_no_wait() {
    let (trigger, draining) = drain();
    let steps = (0..100).flat_map(|_| [Err(103), Ok(1)]).chain([Ok(2)]);
    let start = Instant::now();
    let mut count = 0;
    accept_loop(Script::new(steps), &draining, |connection, _| {
        count += 1;
        if connection == 2 {
            trigger.stop();
        }
    })
    .await
    .unwrap();
    assert_eq!((count, start.elapsed()), (101, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_broken_listener_ends_the_loop() {
    let (_trigger, draining) = drain();
    let error = accept_loop(Script::new([Err(22)]), &draining, |_, _| {})
        .await
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(22));
}

#[tokio::test]
async fn a_drain_serves_what_is_queued_and_closes_the_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    for _ in 0..20 {
        queued.push(TcpStream::connect(address).await.unwrap());
    }
    let (trigger, draining) = drain();
    trigger.start(Duration::from_secs(10));
    let mut served = Vec::new();
    accept_loop(listener, &draining, |connection, _| served.push(connection))
        .await
        .unwrap();
    assert_eq!(served.len(), 20);
    drop(served);
    for mut client in queued {
        assert_eq!(
            client.read(&mut [0; 1]).await.unwrap(),
            0,
            "an orderly end, not a reset"
        );
    }
    assert!(TcpStream::connect(address).await.is_err());
}
